// A device of any generation: node plate.js CLIENT URL polling|websocket|upgrade SIGNATURE. It acks every bind_class.
"use strict";

const [name, url, mode, signature] = process.argv.slice(2);
const module_ = require(name);
const io = module_.io || module_;
const transports = mode === "upgrade" ? ["polling", "websocket"] : [mode];
const socket = io(url, { path: "/socket/socket.io", transports, reconnectionDelay: 100, reconnectionDelayMax: 500 });

socket.on("connect", () => socket.emit("authentication", { signature }));
socket.on("bind_class", (data, ack) => ack({ ack: true }));
process.stdin.on("end", () => process.exit(0)).resume();
