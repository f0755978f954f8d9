import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import gateway as gateway_package
from gateway import __version__, config, delivery
from gateway.__main__ import main
from gateway.auth.file import hash_key
from gateway.cli.devices import devices

PEPPER = {"GATEWAY_PEPPER": "salt and pepper"}


def gateway(
    *args: str | Path, environ: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the real command, without the settings that the environment of the tests may have."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, args)],
        capture_output=True,
        text=True,
        input=stdin,
        env=clean | dict(environ or {}),
        timeout=60,
        check=False,
    )


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text('[mqtt]\nurll = "mqtt://h"\n[devices]\nping_interval_s = "abc"\n')
    return path


BAD = ['mqtt.urll: unknown key, did you mean "url"?', 'devices.ping_interval_s: expected a number > 0, got "abc"']


def test_version() -> None:
    how = "compiled" if delivery.__file__.endswith(".so") else "not compiled"
    assert gateway("--version").stdout.strip() == f"gateway, version {__version__}, {how}"


@pytest.mark.parametrize(
    ("command", "promised"),
    [
        ([], "gateway demo"),
        (["serve"], "gateway serve --mqtt"),
        (["check"], "gateway check --example"),
        (["demo"], "gateway demo --seconds 10"),
        (["call"], "gateway call AC4178234411 device_status"),
        (["call"], "--qos 1 --ttl 60"),
        (["call"], "gateway call --online device_status --json"),
        (["watch"], "gateway watch --serial"),
        (["presence"], "gateway presence --follow"),
        (["status"], "gateway status --admin"),
        (["devices", "import"], "gateway devices import --file"),
        (["devices", "rotate"], "gateway devices rotate --file"),
        (["simulate"], "gateway simulate --url"),
        (["devices", "add"], "gateway devices add --file"),
    ],
)
def test_help_has_examples(command: list[str], promised: str) -> None:
    done = gateway(*command, "--help")
    assert done.returncode == 0
    assert promised in done.stdout


COMMANDS = [[], *([name] for name in main.commands), *(["devices", name] for name in devices.commands)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal(command: list[str]) -> None:
    """Examples are not wrapped: one that is too long could not be copied."""
    done = CliRunner().invoke(main, [*command, "--help"], terminal_width=80)
    assert done.exit_code == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("group", [[], ["devices"]])
def test_no_description_is_cut(group: list[str]) -> None:
    _, _, commands = gateway(*group, "--help", environ={"COLUMNS": "80"}).stdout.partition("Commands:\n")
    assert "  add " in commands or "  serve " in commands
    assert "..." not in commands


@pytest.mark.parametrize("command", ["serve", "demo", "call"])
def test_help_says_what_the_exit_status_means(command: str) -> None:
    assert "Exit status 0" in gateway(command, "--help").stdout


def test_help_does_not_import_what_is_heavy() -> None:
    """`--help` once took as long as the imports of every command together."""
    script = "import sys, gateway.__main__; print([m for m in ('aiohttp', 'msgspec', 'socketio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_accepts_the_example(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    printed = gateway("check", "--example")
    assert (printed.returncode, printed.stdout) == (0, config.example())
    path.write_text(printed.stdout, "utf-8")
    checked = gateway("check", "--config", path)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, f"{path}: ok\n", "")


def test_check_prints_every_problem(bad_file: Path) -> None:
    done = gateway("check", "--config", bad_file, environ={"GATEWAY_MQTT_KEEP_ALIVE_S": "0"})
    expected = 'environment GATEWAY_MQTT_KEEP_ALIVE_S: expected a whole number from 1 to 65535, got "0"'
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [BAD[0], expected.replace('"0"', "0"), BAD[1]]


EXPOSED = """
[auth]
mode = "open"
[[rooms.rules]]
match = "*"
allow = "anyone"
[admin]
listen = "0.0.0.0:0"
[mqtt]
url = "mqtt://user:s3cret@broker.example"
"""


@pytest.mark.parametrize("command", ["check", "serve"])
def test_what_is_open_to_strangers_is_refused_all_at_once(tmp_path: Path, command: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(EXPOSED)
    done = gateway(command, "--config", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "auth.mode",
        "rooms.rules[0]",
        "admin.listen",
        "mqtt.url",
    ]
    assert "s3cret" not in done.stderr


def test_what_is_accepted_is_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    accept = ["open-auth", "anonymous-rooms", "admin-without-token", "plain-mqtt"]
    path.write_text(f"accept = {accept}\n{EXPOSED}")
    assert gateway("check", "--config", path).returncode == 0


@pytest.mark.parametrize(("token", "got"), [(None, "missing"), ("", "missing"), ("short", "too short")])
def test_check_wants_the_token_of_the_admin_port(tmp_path: Path, token: str | None, got: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[admin]\ntoken_env = "GATEWAY_ADMIN_TOKEN"\n[auth]\nmode = "file"\nfile = "/none"\n')
    done = gateway("check", "--config", path, environ={} if token is None else {"GATEWAY_ADMIN_TOKEN": token})
    assert done.returncode == 2
    expected = f"environment GATEWAY_ADMIN_TOKEN: {got}, expected a token of at least 16 characters"
    assert done.stderr.splitlines()[-1] == expected
    assert len(done.stderr.splitlines()) == 3, "with the problems of the keys"


def test_check_reads_the_events_of_a_deployment(tmp_path: Path) -> None:
    own, path = tmp_path / "own.toml", tmp_path / "gateway.toml"
    own.write_text('[[event]]\nname = "blink"\npayload = { type = "objekt" }\n[[event]]\n')
    path.write_text(f'[catalog]\nfile = "{own}"\n')
    done = gateway("check", "--config", path)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{own}: event[0].payload: ")
    assert second == f"{own}: event[1]: Object missing required field `name`"


def test_asyncapi() -> None:
    done = gateway("asyncapi")
    assert done.returncode == 0
    assert done.stdout.startswith("asyncapi: 3.0.0\n")


def test_check_prints_warnings() -> None:
    done = gateway("check", environ={"GATEWAY_SERVICE_HOST": "10.0.0.1"})
    assert done.returncode == 0
    assert done.stderr == "warning: environment GATEWAY_SERVICE_HOST: not a setting, ignored\n"


def test_a_variable_may_be_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mqtt://gateway:a?b@broker\n")
    done = gateway("check", environ={"GATEWAY_MQTT_URL_FILE": str(secret)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("environment GATEWAY_MQTT_URL: expected ")
    assert "a?b" not in done.stderr
    secret.write_text("mqtt://gateway:a%40b@broker\n")
    assert gateway("check", environ={"GATEWAY_MQTT_URL_FILE": str(secret)}).stderr == ""
    done = gateway("check", environ={"GATEWAY_MQTT_URL_FILE": str(tmp_path / "none")})
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = gateway("check", "--config", tmp_path / "none.toml")
    assert (done.returncode, done.stderr) == (
        2,
        f"{tmp_path}/none.toml: cannot be read: No such file or directory\n",
    )


def test_check_refuses_what_serve_refuses(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f'[auth]\nmode = "file"\nfile = "{tmp_path}/none"\n')
    problems = [
        "environment GATEWAY_PEPPER: missing, expected the secret of the hashes",
        f"auth.file: {tmp_path}/none: cannot be read: No such file or directory",
    ]
    for command in (["check"], ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]):
        done = gateway(*command, "--config", path)
        assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", problems)


def test_serve_refuses_a_bad_configuration(bad_file: Path) -> None:
    done = gateway("serve", "--config", bad_file)
    assert (done.returncode, done.stderr.splitlines()) == (2, BAD)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--listen", "8080"], '--listen: expected HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got "8080"'),
        (["--admin", "h:x"], '--admin: expected HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got "h:x"'),
        (["--node", "a/b"], '--node: expected 1 to 64 of A-Z a-z 0-9 . _ -, got "a/b"'),
        (["--auth", "none"], '--auth: expected "open" or "file" or "http" or "broker", got "none"'),
        (["--auth", ""], '--auth: expected "open" or "file" or "http" or "broker", got ""'),
        (
            ["--auth", "file:"],
            '--auth: missing, expected the path of the keys because auth.mode is "file"; as a flag --auth file:PATH',
        ),
        (["--log-format", "xml"], '--log-format: expected "human" or "json", got "xml"'),
    ],
)
def test_serve_names_the_flag_that_is_wrong(flags: list[str], problem: str) -> None:
    done = gateway("serve", *flags)
    assert (done.returncode, done.stderr) == (2, problem + "\n")


def test_serve_does_not_show_a_password() -> None:
    done = gateway("serve", "--mqtt", "mqtt://user:s3cret@h:port")
    assert done.returncode == 2
    assert done.stderr.startswith("--mqtt: expected mqtt://")
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["S1", "text_stop", "{id: 7}"], "JSON: "),
        (["S1", "text_stop", "--mqtt", "localhost"], "--mqtt: expected mqtt://"),
        (["S 1", "text_stop"], "SERIAL: 'S 1' is none"),
        (["S1,,S2", "text_stop"], "SERIAL: '' is none"),
        (["S1", ""], "EVENT: must be 1 to 128 bytes"),
        (
            ["S1", "text_stop", "--qos", "2"],
            "Invalid value for '--qos': 2 is not in the range 0<=x<=1; see `gateway call",
        ),
        (["S1", "text_stop", "--qoss", "1"], "No such option '--qoss'"),
        (["S1"], "expected SERIAL[,SERIAL]... EVENT [JSON]; "),
        (["--online", "S1", "text_stop", "{}"], "expected EVENT [JSON]; "),
        (["--online", "--from-file", "x", "text_stop"], "expected --online or --from-file"),
        (["--from-file", "/dev/null", "text_stop"], "--from-file: /dev/null: has no serial"),
    ],
)
def test_call_refuses_what_it_cannot_send(args: list[str], problem: str) -> None:
    done = gateway("call", *args)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(problem)


@pytest.fixture
def taken() -> Iterator[str]:
    """The address of a port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """The address of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("flag", "setting"), [("--listen", "devices.listen"), ("--admin", "admin.listen")])
def test_serve_says_which_port_is_taken(taken: str, closed: str, flag: str, setting: str) -> None:
    addresses = {"--listen": "127.0.0.1:0", "--admin": "127.0.0.1:0", flag: taken}
    done = gateway("serve", *(word for pair in addresses.items() for word in pair), "--mqtt", f"mqtt://{closed}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"cannot serve: {setting}: {taken}: ")
    assert "Traceback" not in done.stderr


def test_serve_says_that_the_pepper_is_missing(tmp_path: Path) -> None:
    keys = tmp_path / "devices"
    keys.write_text("")
    done = gateway("serve", "--auth", f"file:{keys}", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    assert done.returncode == 2
    assert "GATEWAY_PEPPER" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_call_without_a_broker(closed: str) -> None:
    done = gateway("call", "S1", "text_stop", environ={"GATEWAY_MQTT_URL": f"mqtt://u:s3cret@{closed}"})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"mqtt://u:***@{closed}: Connection refused; is a broker there? ")
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["cal"], "No such command 'cal'. Did you mean 'call'?; see `gateway --help`"),
        (["--nope"], "No such option '--nope'; see `gateway --help`"),
        (["devices", "list"], "Missing option '--file'; see `gateway devices list --help`"),
        (["watch", "--serial", "a/b"], "SERIAL: 'a/b' is none, expected"),
        (["watch", "--event", ""], "EVENT: must be 1 to 128 bytes, is 0"),
        (["watch", "--prefix", "gw/#"], "--prefix: expected levels such as gw/v1"),
        (["status", "--prefix", "gw/+"], "--prefix: expected levels such as gw/v1"),
        (["call", "AC1", "text_stop", "--prefix", ""], "--prefix: expected levels such as gw/v1"),
        (["status", "--admin", "localhost:9464"], "--admin: expected a URL such as http://127.0.0.1:9464"),
        (["asyncapi", "--schemas", "/dev/null/s"], "--schemas: /dev/null/s: cannot be written: Not a directory"),
        (["simulate", "--keys", "/nonexistent"], "Invalid value for '--keys': '/nonexistent': No such file"),
    ],
)
def test_an_error_of_usage_is_one_line(words: list[str], problem: str) -> None:
    done = gateway(*words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(problem)


@pytest.mark.parametrize("words", [["asyncapi"], ["check", "--example"]])
def test_a_reader_that_has_gone_is_no_error_of_ours(words: list[str]) -> None:
    """As in `gateway asyncapi | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "gateway", *words], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", [[], ["devices"]])
def test_a_group_without_a_command_is_helpful(words: list[str]) -> None:
    done = gateway(*words)
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def test_bash_completes_commands_options_and_events() -> None:
    """As the README says to set it up, in a real shell."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = """
        eval "$(_GATEWAY_COMPLETE=bash_source gateway)"
        complete_word() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _gateway_completion gateway
            echo "${COMPREPLY[@]}"
        }
        complete_word gateway si
        complete_word gateway call --onl
        complete_word gateway call AC1 face
        complete_word gateway simulate --profile mi
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path}, check=True
    )
    assert done.stdout.splitlines() == ["simulate", "--online", "face_data_count", "mixed"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_completion(shell: str) -> None:
    done = gateway(environ={"_GATEWAY_COMPLETE": f"{shell}_source"})
    assert (done.returncode, "COMMAND" in done.stdout or "complete" in done.stdout) == (0, True)


def add(path: Path, serial: str, key: str) -> subprocess.CompletedProcess[str]:
    return gateway("devices", "add", "--file", path, serial, environ=PEPPER, stdin=key)


def entry(serial: str, key: str) -> str:
    return f"{serial}:{hash_key(serial, key, PEPPER['GATEWAY_PEPPER'].encode())}"


def test_devices_add_writes_a_line_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "devices"
    done = add(path, "AC1", "k:ey\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: AC1 may connect\n", "")
    assert path.read_text() == entry("AC1", "k:ey") + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_devices_add_replaces_one_line_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "devices"
    path.write_text(f"# hall\n{entry('AC1', 'old')}\n{entry('AC11', 'other')}")
    assert add(path, "AC1", "new").returncode == 0
    assert path.read_text().splitlines() == ["# hall", entry("AC11", "other"), entry("AC1", "new")]


def test_devices_add_follows_a_symbolic_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("")
    link.symlink_to(real)
    assert add(link, "AC1", "key").returncode == 0
    assert link.is_symlink()
    assert real.read_text() == entry("AC1", "key") + "\n"


@pytest.mark.parametrize(
    ("serial", "key", "environ", "problem"),
    [
        ("AC1", "key", {}, "GATEWAY_PEPPER is not set: export the secret that the gateway runs with"),
        ("AC1", "\n", PEPPER, "the key is empty: type it when asked, or pipe it in as one line"),
        ("a/b", "key", PEPPER, "SERIAL: expected 1 to 64 of A-Z a-z 0-9 . _ -"),
    ],
)
def test_devices_add_refuses(tmp_path: Path, serial: str, key: str, environ: dict[str, str], problem: str) -> None:
    done = gateway("devices", "add", "--file", tmp_path / "devices", serial, environ=environ, stdin=key)
    assert (done.returncode, done.stderr) == (2, problem + "\n")
    assert list(tmp_path.iterdir()) == []


def test_devices_are_listed_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "devices"
    path.write_text(f"# hall\n{entry('AC2', 'k')}\n{entry('AC1', 'k')}\n")
    assert gateway("devices", "list", "--file", path).stdout == "AC2\nAC1\n"
    done = gateway("devices", "remove", "--file", path, "AC2")
    assert (done.returncode, done.stdout) == (0, f"{path}: AC2 may no longer connect\n")
    assert gateway("devices", "list", "--file", path).stdout == "AC1\n"
    done = gateway("devices", "remove", "--file", path, "AC2")
    assert (done.returncode, done.stdout) == (1, f"{path}: AC2 may not connect: it is not in the file\n")


@pytest.mark.parametrize("command", [["list"], ["remove", "AC1"]])
def test_devices_of_a_file_that_is_not_there(tmp_path: Path, command: list[str]) -> None:
    done = gateway("devices", *command, "--file", tmp_path / "none")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ([], "expected a SERIAL, --devices N or --keys CSV\n"),
        (["AC1", "--url", "127.0.0.1:8080"], "--url: expected http://HOST:PORT or https://HOST:PORT\n"),
        (["AC1", "--ca", "/none"], "--ca: /none: No such file or directory\n"),
        (["AC1", "--ca", "README.md"], "--ca: README.md: no certificate of an authority in it\n"),
        (["a/b"], "'a/b' is no serial: expected 1 to 64 of A-Z a-z 0-9 . _ -\n"),
        (["--devices", "2", "--serial-prefix", "a b"], "'a b1' is no serial: expected 1 to 64 of A-Z a-z 0-9 . _ -\n"),
    ],
)
def test_simulate_refuses(args: list[str], problem: str) -> None:
    done = gateway("simulate", *args)
    assert (done.returncode, done.stderr) == (2, problem)


def test_devices_add_where_there_is_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "none" / "devices"
    done = add(path, "AC1", "key")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{path}: cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


def test_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, `gateway demo` is one line with the command that installs it."""

    def run(*_: object, **__: object) -> int:
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    fake = ModuleType("gateway.demo")
    monkeypatch.setattr(fake, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "gateway.demo", fake)
    monkeypatch.setattr(gateway_package, "demo", fake, raising=False)
    done = CliRunner().invoke(main, ["demo"])
    hint = "pip install 'socketio-mqtt-gateway[demo]'"
    assert (done.exit_code, done.stderr) == (2, f"the demo needs rich, which is not installed: {hint}\n")


def test_devices_import_adds_all_or_none(tmp_path: Path) -> None:
    path, table = tmp_path / "devices", tmp_path / "plates.csv"
    path.write_text(f"# hall\n{entry('AC1', 'old')}\n")
    table.write_text("AC1,new\nAC2\n\na/b,key\nAC1,again\n")
    done = gateway("devices", "import", "--file", path, table, environ=PEPPER)
    problems = [f"{table}:2: expected SERIAL,KEY", f"{table}:4: expected SERIAL,KEY", f"{table}:5: AC1 is there twice"]
    assert (done.returncode, done.stderr.splitlines()) == (2, problems)
    assert path.read_text() == f"# hall\n{entry('AC1', 'old')}\n"
    done = gateway("devices", "import", "--file", path, "-", environ=PEPPER, stdin='AC1,new\nAC2,"a,b"\n')
    assert (done.returncode, done.stdout) == (0, f"{path}: 2 devices may connect\n")
    assert path.read_text().splitlines() == ["# hall", entry("AC1", "new"), entry("AC2", "a,b")]


def test_devices_rotate_prints_the_new_key(tmp_path: Path) -> None:
    path = tmp_path / "devices"
    assert add(path, "AC1", "old").returncode == 0
    done = gateway("devices", "rotate", "--file", path, "AC1", environ=PEPPER)
    assert done.returncode == 0
    assert path.read_text() == entry("AC1", done.stdout.strip()) + "\n"
    done = gateway("devices", "rotate", "--file", path, "AC2", environ=PEPPER)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
