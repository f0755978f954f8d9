// A viewer with a token: node viewer.js CLIENT TRANSPORT URL WAY TOKEN ROOM
// WAY is auth, query or header, as the client has it; none is without a token. Prints what it is told; ends with its
// standard input.
"use strict";

const [name, transport, url, way, token, room] = process.argv.slice(2);
const client = require(name);
const io = client.io || client;
const old = ["sio17", "sio25"].includes(name);

const options = { path: "/socket/socket.io", transports: [transport], forceNew: true, reconnection: false };
if (way === "auth" && !old) options.auth = { token };
if (way === "query") options.query = old ? `token=${encodeURIComponent(token)}` : { token };
if (way === "header") options.extraHeaders = { Authorization: `Bearer ${token}` };

const socket = io(url, options);
const print = (...words) => console.log(words.join(" "));
const join = () => socket.emit("join_room", { room });
let connects = 0;

socket.on("connect", () => {
  print("connect");
  if (way !== "auth" || !old) return join();
  // Clients of Engine.IO 3 have joined before they say anything: `auth` is the query of another CONNECT packet.
  if (++connects === 1) socket.packet({ type: 0, query: `token=${token}` });
  else join();
});
socket.on("join_room:ok", () => print("joined"));
socket.on("join_room:fail", ({ error_msg }) => print("refused", error_msg));
socket.on("connect_error", (error) => print("error", error.message));
socket.on("error", (error) => print("error", error));
socket.on("disconnect", () => print("disconnect"));
socket.on("cmd_result", (data) => print("cmd_result", JSON.stringify(data)));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
