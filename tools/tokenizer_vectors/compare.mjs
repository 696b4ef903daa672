// node compare.mjs TROUPE [KIMI_DIRECTORY]: a megabyte and more of hard text, whole tokenizers, ours
// against the references. Prints how many texts differ; the exit status is 1 if one does.
import {execFileSync} from 'node:child_process';
import {mkdtempSync, readFileSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';

import {get_encoding} from 'tiktoken';

import {corpus, makeMixtures} from './corpus.mjs';
import {Tokenizer} from './reference.mjs';
import {kimi, kimiTexts, readRanks} from './tiktoken.mjs';

const [troupe, kimiDirectory] = process.argv.slice(2);
const texts = [...corpus, ...kimiTexts, ...makeMixtures(40000, 7)].filter((text) => text.isWellFormed());
const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
const scratch = mkdtempSync(join(tmpdir(), 'troupe-compare-'));
const promptFile = join(scratch, 'texts.json');
writeFileSync(promptFile, JSON.stringify(texts));

const ours = (directory) => JSON.parse(execFileSync(
    troupe, ['tokenize', '--tokenizer', directory, '--prompt-file', promptFile, '--no-special'],
    {encoding: 'utf8', maxBuffer: 1 << 28}));

let failed = false;
function compare(name, directory, expected) {
  const found = ours(directory);
  const different = texts.filter((_, i) => JSON.stringify(found[i]) !== JSON.stringify(expected[i]));
  console.log(`${name}: ${bytes} bytes in ${texts.length} texts, ${different.length} differ`);
  for (const text of different.slice(0, 5)) console.log(`  ${JSON.stringify(text)}`);
  failed ||= different.length > 0;
}

async function ofHuggingFace(directory) {
  const tokenizer = Tokenizer.fromString(readFileSync(join(directory, 'tokenizer.json'), 'utf8'));
  const ids = [];
  for (const text of texts) ids.push((await tokenizer.encode(text, null, {addSpecialTokens: false})).getIds());
  return ids;
}

const packaged = (name) => new URL(`node_modules/@lenml/${name}/models`, import.meta.url).pathname;
for (const name of ['tokenizer-deepseek_v3', 'tokenizer-gptoss'])
  compare(`${name}, tokenizers`, packaged(name), await ofHuggingFace(packaged(name)));
const o200k = get_encoding('o200k_base');
compare('tokenizer-gptoss, tiktoken o200k_base', packaged('tokenizer-gptoss'),
        texts.map((text) => [...o200k.encode_ordinary(text)]));
if (kimiDirectory) {
  const config = JSON.parse(readFileSync(join(kimiDirectory, 'tokenizer_config.json'), 'utf8'));
  const ranks = readRanks(readFileSync(join(kimiDirectory, 'tiktoken.model'), 'utf8'));
  compare('Kimi-K2, tiktoken', kimiDirectory, texts.map(kimi(ranks, config.added_tokens_decoder)));
}
process.exit(failed ? 1 : 0);
