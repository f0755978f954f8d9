var socket = io('https://bpstaging.adachina.net', {path: "/socket/socket.io"});

    socket.on('connect', function () {
      socket.emit('authentication', { signature: 'abcdefg123456' });
    });
    socket.on('auth:ok', function () {
      console.log("authentication ok");
    });
    socket.on('auth:fail', function (data) {
      console.log(data.error_msg);
    });
    socket.on('class:update', function (data, callback) {
      console.log(data);
      callback({"ack": true});
      document.getElementById('message').innerHTML = data;
    })
