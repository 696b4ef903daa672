// The part of a tokenizer.json that a corpus can reach: same ids for those texts, a fraction of the
// size. Where there are hundreds of added tokens, those that the corpus does not hold go, too.

export const ALPHABET = (() => {
  const characters = [];
  let next = 0x100;
  for (let byte = 0; byte < 256; ++byte) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    characters.push(String.fromCharCode(printable ? byte : next++));
  }
  return characters;
})();

// Longer tokens than the corpus reaches are runs of one character.
const LONGEST = 64;

export function reduce(tokenizer, corpus) {
  const {vocab, merges} = tokenizer.model;
  const spelled = corpus.map((text) => [...Buffer.from(text)].map((byte) => ALPHABET[byte]).join(''));
  const reachable = new Set(ALPHABET);
  for (const text of spelled)
    for (let start = 0; start < text.length; ++start)
      for (let length = 1; length <= LONGEST && start + length <= text.length; ++length)
        reachable.add(text.slice(start, start + length));

  const parts = (merge) => Array.isArray(merge) ? merge : merge.split(' ');  // the format has both
  const kept = merges.filter((merge) => reachable.has(parts(merge).join('')));
  const tokens = new Set(ALPHABET);
  for (const merge of kept) {
    const [left, right] = parts(merge);
    for (const token of [left, right, left + right]) tokens.add(token);
  }
  const added = tokenizer.added_tokens.filter(
      ({content}, _, all) => all.length < 100 || corpus.some((text) => text.includes(content)));
  // In the vocabulary they keep their ids; outside it the reference would number them anew.
  const small = Object.fromEntries(Object.entries(vocab).filter(([token]) => tokens.has(token)));
  for (const {content, id} of added) small[content] = id;
  return {...tokenizer, added_tokens: added, model: {...tokenizer.model, vocab: small, merges: kept}};
}
