// Runs a sample of device-protocol.zh.md as a web page would: `io`, `document` and the console are there.
// node page.js SAMPLE URL SIGNATURE
const fs = require("fs");
const vm = require("vm");
const [sample, url, signature] = process.argv.slice(2);
const source = fs
  .readFileSync(sample, "utf8")
  .replaceAll("https://bpstaging.adachina.net", url)
  .replaceAll("abcdefg123456", signature);
const element = {};
Object.defineProperty(element, "innerHTML", { set: (html) => console.log("shown", JSON.stringify(html)) });
const sockets = [];
const io = (...args) => {
  const socket = require("sio48")(...args);
  socket.onAny((event, ...data) => console.log("event", event, JSON.stringify(data.filter((x) => typeof x !== "function"))));
  sockets.push(socket);
  return socket;
};
io.connect = io;
const document = { getElementById: () => element };
vm.runInNewContext(source, { io, document, console });
process.stdin.on("data", (line) => vm.runInNewContext(String(line), { sockets, console }));
process.stdin.on("end", () => sockets.forEach((socket) => socket.disconnect()));
