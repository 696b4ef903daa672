// The reference for tiktoken files: OpenAI's Rust library, as WebAssembly (`tiktoken` on npm), with
// the pattern and the special tokens of Kimi-K2's tokenization_kimi.py.
import {Tiktoken} from 'tiktoken/lite';

const KIMI_PATTERN = [
  String.raw`[\p{Han}]+`,
  String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?`,
  String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?`,
  String.raw`\p{N}{1,3}`, String.raw` ?[^\s\p{L}\p{N}]+[\r\n]*`, String.raw`\s*[\r\n]+`,
  String.raw`\s+(?!\S)`, String.raw`\s+`,
].join('|');

// `ranks`: tokens in base64, by rank. `added`: added_tokens_decoder.
export function kimi(ranks, added) {
  const special = {};
  for (let id = ranks.length; id < ranks.length + 256; ++id)
    special[added[id]?.content ?? `<|reserved_token_${id}|>`] = id;
  const encoding = new Tiktoken(`! 0 ${ranks.join(' ')}`, special, KIMI_PATTERN);
  return (text) => [...encoding.encode(text, 'all')];
}

export const readRanks = (text) =>
    text.split('\n').filter((line) => line).map((line) => line.split(' ')[0]);

// Of npm's packed form "! FIRST TOKEN TOKEN ...".
export function unpackRanks(packed) {
  const ranks = [];
  for (const line of packed.split('\n')) {
    const [, first, ...tokens] = line.split(' ');
    tokens.forEach((token, i) => { ranks[Number(first) + i] = token; });
  }
  return ranks.filter((token) => token);
}

// The tokens that the corpus can reach, numbered anew in their order: what is merged stays the same.
export function reduceRanks(ranks, corpus) {
  const reachable = new Set();
  for (let byte = 0; byte < 256; ++byte) reachable.add(Buffer.from([byte]).toString('base64'));
  const longest = 64;
  for (const text of corpus) {
    const bytes = Buffer.from(text);
    for (let start = 0; start < bytes.length; ++start)
      for (let end = start + 1; end <= Math.min(bytes.length, start + longest); ++end)
        reachable.add(bytes.subarray(start, end).toString('base64'));
  }
  return ranks.filter((token) => reachable.has(token));
}

const named = {0: '[BOS]', 1: '[EOS]', 2: '<|im_end|>', 3: '<|im_user|>', 4: '<|im_assistant|>',
  10: '<|im_system|>', 11: '<|tool_calls_section_begin|>', 17: '<|im_middle|>', 254: '[UNK]', 255: '[PAD]'};

export function tokenizerConfig(numRanks) {
  const added = {};
  for (const [offset, content] of Object.entries(named))
    added[numRanks + Number(offset)] = {content, lstrip: false, normalized: false, rstrip: false,
      single_word: false, special: !content.includes('tool')};
  return {added_tokens_decoder: added, bos_token: '[BOS]', eos_token: '[EOS]', tokenizer_class: 'TikTokenTokenizer'};
}

export const kimiTexts = [
  '中文English混合', '汉字abc 漢字ABC', '北京市 Pascal', '々〇〻〡〢⺀⼀㐀㛿', 'x々y〇z⺀w', 'ー々ヽ〆仝', '𠮷野家𪚥\u{2ebf0}\u{2ee5d}\u{31350}\u{323af}\u{33480}',
  'ひらがな漢字カタカナ漢字한글漢字', '\u3001漢\u3002字\uff01', 'a\u0301漢\u0301', 'It\'s IT\'S we\u2019re don\'T x\'\u017f y\'S', 'camelCaseABCDef HTTPServer iPhone ǅungla ǈ ʰa',
  '[BOS]<|im_system|>system<|im_middle|>You are Kimi<|im_end|><|im_user|>user<|im_middle|>Hi<|im_end|>[EOS]', '<|im_end', '[BOS', '[PAD][UNK]', '<|tool_calls_section_begin|>{}',
  'path/to/file\n//comment\r\n', 'a/b\n/\n', '٣٤٥٦ ⅣⅤ 12345678', ' \n\t \r\n  x', '   漢', '!漢字!', '\u200b漢',
];
