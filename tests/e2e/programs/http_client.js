// 200 requests with fetch, 40 at a time, with bodies of 0 to 39 hundred bytes.
const base = process.argv[2];
async function one(i) {
  const response = await fetch(`${base}/${i}`, { method: 'POST', body: 'x'.repeat(i * 100) });
  const text = await response.text();
  if (text !== `/${i} ${i * 100}`) throw new Error(`request ${i} was answered with ${text}`);
}
(async () => {
  for (let round = 0; round < 5; round++) await Promise.all([...Array(40).keys()].map(one));
  console.log('200 answered');
})().catch((error) => { console.error(error); process.exit(1); });
