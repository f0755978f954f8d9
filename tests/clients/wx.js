// What a WeChat mini-program offers of WebSockets, for weapp.socket.io: a SocketTask.
const WebSocket = require("ws");
module.exports = {
  connectSocket: ({ url }) => {
    const socket = new WebSocket(url);
    return {
      onOpen: (callback) => (socket.onopen = () => callback({})),
      onMessage: (callback) => (socket.onmessage = ({ data }) => callback({ data })),
      onClose: (callback) => (socket.onclose = ({ code, reason }) => callback({ code, reason })),
      onError: (callback) => (socket.onerror = ({ message }) => callback({ errMsg: message })),
      send: ({ data, success }) => socket.send(data, () => success && success()),
      close: () => socket.close(),
    };
  },
};
