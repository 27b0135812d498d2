// Answers every request with its path and the length of its body.
const http = require('http');
const server = http.createServer((request, response) => {
  let length = 0;
  request.on('data', (piece) => { length += piece.length; });
  request.on('end', () => response.end(`${request.url} ${length}`));
});
server.listen(8000, process.argv[2], () => console.log('listening'));
