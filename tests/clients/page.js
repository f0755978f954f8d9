// Runs a sample of device-protocol.zh.md as a web page would: `io`, `document` and the console are there.
// node page.js SAMPLE URL SIGNATURE [CLIENT]
const fs = require("fs");
const vm = require("vm");
const [sample, url, signature, client = "sio48"] = process.argv.slice(2);
const source = fs
  .readFileSync(sample, "utf8")
  .replaceAll("https://bpstaging.adachina.net", url)
  .replaceAll("abcdefg123456", signature);
const element = {};
Object.defineProperty(element, "innerHTML", { set: (html) => console.log("shown", JSON.stringify(html)) });
const sockets = [];
const io = (...args) => {
  const library = require(client);
  const socket = (library.io || library)(...args);
  const onevent = socket.onevent; // onAny came with 3.0
  socket.onevent = (packet) => {
    console.log("event", packet.data[0], JSON.stringify(packet.data.slice(1)));
    onevent.call(socket, packet);
  };
  sockets.push(socket);
  return socket;
};
io.connect = io;
const document = { getElementById: () => element };
vm.runInNewContext(source, { io, document, console });
process.stdin.on("data", (line) => vm.runInNewContext(String(line), { sockets, console }));
process.stdin.on("end", () => sockets.forEach((socket) => socket.disconnect()));
