// One real client against the server: node driver.js <package> <url> <polling|websocket|upgrade>
// Prints a line per thing that worked; exits 0 when all of them did.
"use strict";

const assert = require("assert");
const [name, url, mode] = process.argv.slice(2);
if (name === "weapp") Object.assign(global, { wx: require("./wx.js"), window: undefined });
const client = require(name);
const io = client.io || client;

const TEXT = "中文 班牌 😀 é €";
const BINARY = Buffer.from([0, 1, 0xff, 0x1e, 0x80, 4]);
const LONG = "长".repeat(50_000) + "x".repeat(150_000); // 300 KB of UTF-8
const BURST = Array.from({ length: 40 }, (_, number) => number);

const socket = io(url, {
  path: "/socket/socket.io",
  transports: mode === "upgrade" ? ["polling", "websocket"] : [mode],
  forceNew: true,
  reconnectionDelay: 50,
  reconnectionDelayMax: 100,
});

const next = (event) => new Promise((resolve) => socket.once(event, (...args) => resolve(args)));
const ask = (event, ...args) => new Promise((resolve) => socket.emit(event, ...args, (...got) => resolve(got)));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const transport = () => socket.io.engine.transport.name;
const bytes = (data) => Buffer.from(data).toString("hex");
const done = (what) => console.log(what);

async function main() {
  await next("connect");
  if (mode === "upgrade" && transport() === "polling") {
    await new Promise((resolve) => socket.io.engine.once("upgrade", resolve));
  }
  assert.strictEqual(transport(), mode === "upgrade" ? "websocket" : mode);
  done("connects over " + mode);

  assert.deepStrictEqual(await ask("echo", TEXT, { [TEXT]: [1, null, true] }), [TEXT, { [TEXT]: [1, null, true] }]);
  done("text and its ack");

  socket.once("question", (text, ack) => ack(text, { ack: true }));
  const answered = next("answered");
  socket.emit("ask me", TEXT);
  assert.deepStrictEqual(await answered, [TEXT, { ack: true }]);
  done("an event of the server and its ack");

  const [echoed, nested] = await ask("echo", BINARY, { data: BINARY });
  assert.strictEqual(bytes(echoed), bytes(BINARY));
  assert.strictEqual(bytes(nested.data), bytes(BINARY));
  done("binary both ways");

  assert.deepStrictEqual(await ask("echo", LONG), [LONG]);
  done("300 KB both ways");

  const seen = [];
  const all = new Promise((resolve) =>
    socket.on("burst", (number) => seen.push(number) === BURST.length && resolve())
  );
  BURST.forEach((number) => socket.emit("burst", number));
  await all;
  assert.deepStrictEqual(seen, BURST);
  done("a burst in order both ways");

  let dropped = false;
  socket.once("disconnect", () => (dropped = true));
  await pause(2500); // more than interval and timeout
  assert.deepStrictEqual([dropped, await ask("echo", 1)], [false, [1]]);
  done("idle beyond interval and timeout");

  const again = next("connect");
  socket.emit("drop me");
  await again;
  assert.deepStrictEqual(await ask("echo", TEXT), [TEXT]);
  done("reconnects");
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  }
);
