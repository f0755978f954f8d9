from pathlib import Path

import pytest

from gateway.secret_files import read_secret_files
from gateway.settings import ConfigError


def test_a_file_stands_for_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("mqtt://gateway:a%20b@broker \r\n", "utf-8")
    environ = {"GATEWAY_MQTT_URL_FILE": str(path), "GATEWAY_NODE": "gw-1", "HOME_FILE": "x"}
    read_secret_files(environ)
    assert environ == {"GATEWAY_MQTT_URL": "mqtt://gateway:a%20b@broker ", "GATEWAY_NODE": "gw-1", "HOME_FILE": "x"}


def test_what_a_setting_names_counts_too(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("secret\n")
    environ = {"GATEWAY_PEPPER_FILE": str(tmp_path / "pepper")}
    read_secret_files(environ)
    assert environ == {"GATEWAY_PEPPER": "secret"}


def test_a_setting_that_is_a_file_stays_one(tmp_path: Path) -> None:
    environ = {"GATEWAY_AUTH_FILE": "devices.txt", "GATEWAY_CATALOG_FILE": str(tmp_path)}
    read_secret_files(environ)
    assert environ == {"GATEWAY_AUTH_FILE": "devices.txt", "GATEWAY_CATALOG_FILE": str(tmp_path)}


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "bytes").write_bytes(b"\xff")
    environ = {
        "GATEWAY_MQTT_URL_FILE": str(tmp_path / "none"),
        "GATEWAY_NODE_FILE": str(tmp_path / "bytes"),
        "GATEWAY_PEPPER": "a",
        "GATEWAY_PEPPER_FILE": str(tmp_path / "secret"),
    }
    with pytest.raises(ConfigError) as caught:
        read_secret_files(environ)
    url, node, pepper = caught.value.problems
    assert url.startswith("environment GATEWAY_MQTT_URL_FILE: cannot be read: ")
    assert node.startswith("environment GATEWAY_NODE_FILE: cannot be read: ")
    assert pepper == "environment GATEWAY_PEPPER_FILE: GATEWAY_PEPPER is there too, expected one of them"
