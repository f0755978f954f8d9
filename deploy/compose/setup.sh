#!/bin/sh
# Makes the passwords of deploy/compose.yaml, once; `docker compose down --volumes` forgets them, and all data. Each of
# the directories in $SECRETS belongs to one service, which sees no other.
set -eu
umask 077
cd "${SECRETS:-/secrets}"
if [ -e broker/passwd ]; then exit 0; fi

random() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

gateway=$(random) commander=$(random) devices=$(random)
echo "mqtt://gateway:$gateway@mosquitto:1883" > gateway/mqtt-url
random > gateway/relay-secret
echo "mqtt://commander:$commander@mosquitto:1883" > service/mqtt-url
echo "$devices-{serial}" > simulate/key
random > grafana/admin-password

# Devices are users of the broker: their serial, and their key.
{
    echo "gateway:$gateway"
    echo "commander:$commander"
    for number in $(seq 1 300); do echo "SIM$number:$devices-SIM$number"; done
} > broker/new
mosquitto_passwd -U broker/new

if [ "$(id -u)" = 0 ]; then # the users of the images
    chown -R 1883:1883 broker
    chown -R 10001:10001 gateway service simulate
    chown -R 472:0 grafana
fi
mv broker/new broker/passwd
