// The bridge that one writes with stock socket.io and mqtt.js: one MQTT connection for all devices.
// node bridge.js PORT MQTT_URL PING_INTERVAL_S
const { createServer } = require("http");
const { Server } = require("socket.io");
const mqtt = require("mqtt");

const [port, mqttUrl, pingIntervalS] = process.argv.slice(2);
const PREFIX = "gw/v1";
const ACK_TIMEOUT_MS = 10_000;

const devices = new Map(); // serial -> socket
const http = createServer();
const io = new Server(http, { path: "/socket/socket.io", pingInterval: pingIntervalS * 1000 });
const client = mqtt.connect(mqttUrl, { protocolVersion: 5, properties: { receiveMaximum: 65535 } });

function publish(topic, body, properties) {
  client.publish(topic, JSON.stringify(body), { qos: 1, properties });
}

function command(serial, event, payload, properties) {
  const started = performance.now();
  const answer = (status, data) => {
    const outcome = { id: properties.userProperties?.id ?? null, serial, event, status, final: true, data };
    outcome.latency_ms = performance.now() - started;
    const { correlationData } = properties;
    const to = properties.responseTopic ?? `${PREFIX}/devices/${serial}/acks/${event}`;
    publish(to, outcome, { correlationData, contentType: "application/json", userProperties: { status } });
  };
  const socket = devices.get(serial);
  if (!socket) return answer("offline", null);
  let data;
  try {
    data = payload.length ? [JSON.parse(payload)] : [];
  } catch {
    return answer("rejected", null);
  }
  socket.timeout(ACK_TIMEOUT_MS).emit(event, ...data, (error, ack) => {
    answer(error ? "timeout" : "acked", ack ?? null);
  });
}

io.on("connection", (socket) => {
  let serial = null;
  socket.on("authentication", ({ signature }) => {
    const [claimed, key] = Buffer.from(signature, "base64").toString().split(":");
    if (!claimed || !key) return socket.emit("auth:fail", { error_msg: "signature not valid." });
    serial = claimed;
    devices.get(serial)?.disconnect(true);
    devices.set(serial, socket);
    socket.emit("auth:ok");
  });
  socket.on("join_room", ({ room }) => {
    socket.join(room);
    socket.emit("join_room:ok");
  });
  socket.onAny((event, ...args) => {
    if (!serial || event === "authentication" || event === "join_room") return;
    const payload = typeof args.at(-1) === "function" ? args.slice(0, -1) : args;
    publish(`${PREFIX}/devices/${serial}/events/${event}`, payload[0], { contentType: "application/json" });
  });
  socket.on("disconnect", () => {
    if (devices.get(serial) === socket) devices.delete(serial);
  });
});

client.on("message", (topic, payload, { properties = {} }) => {
  const levels = topic.slice(PREFIX.length + 1).split("/");
  if (levels[0] === "rooms") io.to(levels[1]).emit(levels[3], JSON.parse(payload));
  else command(levels[1], levels[3], payload, properties);
});

client.on("connect", () => {
  client.stream.setNoDelay(true); // mqtt.js leaves Nagle's algorithm on: its latencies would be far worse
  const topics = [`${PREFIX}/devices/+/commands/#`, `${PREFIX}/rooms/+/events/+`];
  client.subscribe(topics, { qos: 1 }, (error) => {
    if (error) throw error;
    if (!http.listening) http.listen(Number(port), "127.0.0.1");
  });
});
