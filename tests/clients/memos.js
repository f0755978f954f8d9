var socket = io.connect('https://bpstaging.adachina.net', {path: "/socket/socket.io"});

// 加入房间
socket.on('connect', function(){
  socket.emit('join_room', { "room": "bp_student_101" });
});

// 接受新留言推送
socket.on('memos_update', function(data){

});

// 接受留言已读状态推送
socket.on('memos_read', function(data){

});
