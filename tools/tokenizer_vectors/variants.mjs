// Small tokenizers that differ from a plain byte-level BPE in one thing each: what other files of
// the format may ask for. `patch` is a JSON merge patch (RFC 7386) of the plain one.
import {ALPHABET} from './reduce.mjs';

const MERGES = [
  'h e', 'Ġ t', 'Ġt he', 'l l', 'i n', 'in g', 'Ġ a', '1 2', '3 4', '12 34', 'Ġ Ġ', 'ĠĠ ĠĠ', '\' s',
  'b c', 'a bc', 'a b', 'ab c', 'abc d', '. .', '.. .', 'ä ¸', 'ä¸ Ń', 'Ċ Ċ', 'o o', 'oo o', 'x y',
];

const model = {type: 'BPE', vocab: {}, merges: MERGES};
for (const token of [...ALPHABET, ...MERGES.map((merge) => merge.replace(' ', ''))])
  model.vocab[token] ??= Object.keys(model.vocab).length;

const BYTE_LEVEL = {type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false};
const sequence = (...steps) =>
    ({pre_tokenizer: {type: 'Sequence', pretokenizers: [...steps, BYTE_LEVEL]}});
export const byteLevel = {...sequence(), decoder: {...BYTE_LEVEL, use_regex: true}, model};

const split = (pattern, behavior = 'Isolated', invert = false) =>
    ({type: 'Split', pattern, behavior, invert});
const alone = (flags) => ({pre_tokenizer: {...BYTE_LEVEL, ...flags, pretokenizers: null}});
const regex = (...patterns) => sequence(...patterns.map((Regex) => split({Regex})));

let nextId = Object.keys(model.vocab).length;
const added = (content, flags = {}) => ({
  id: model.vocab[content] ?? nextId++, content, single_word: false, lstrip: false, rstrip: false, normalized: false,
  special: false, ...flags,
});
const ADDED = [
  added('<a>'), added('<a>b'), added('<L>', {lstrip: true}), added('<R>', {rstrip: true}),
  added('<LR>', {lstrip: true, rstrip: true, special: true}), added('word', {single_word: true}),
  added('late', {normalized: true}), added('>late', {normalized: true, single_word: true}),
  added(' ~', {rstrip: true}), added('é'), added('<bos>', {special: true}), added('<eos>', {special: true}),
];
const id = (content) => ADDED.find((token) => token.content === content).id;
const special = (...contents) => Object.fromEntries(contents.map((content) => [
  content, {id: content, ids: [id(content)], tokens: [content]}]));
const template = (...pieces) => ({
  type: 'TemplateProcessing',
  single: pieces.map((piece) => piece === '$A' ? {Sequence: {id: 'A', type_id: 0}}
                                               : {SpecialToken: {id: piece, type_id: 0}}),
  pair: [{Sequence: {id: 'A', type_id: 0}}, {Sequence: {id: 'B', type_id: 1}}],
  special_tokens: special('<bos>', '<eos>'),
});
const offsets = {type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true};

const TEXTS = [
  '', 'the thing in  the    end... 1234 12345678', 'I\'LL say it\'s \'S DON\'T we\'Ve \'\u017f x',
  'abcd bcd abc abcabcd ooooo xyxy', '中文 1,234.56 x\t\ty \n\n z \r\n', '  lead and trail  ', 'a.b..c...d',
  'x\u0085y\u180ez \u3000 w\u00a0', 'HelloWorld FOOBar\u01c5x \u0301y 𝟙𝟚𝟛٣', '1 22 333 4444 1234567890',
];
const ADDED_TEXTS = [
  ...TEXTS, '<a>b<a><a>bb', 'x <L> y <L><L>  <L>', 'x <R> y <R>  <R>\n\t z', ' <LR>  <L> <R>\u3000<LR> ',
  'word words sword word. -word- word_ word\u200d éword wordé word', '<a>late x>late y>latez late>late',
  'a ~  ~ ~b ~', '<bos>x<eos>', '<R> ~ <L>', '  <L>\u0085<L>', 'é è',
];

export const variants = [
  {name: 'plain', patch: {}, texts: TEXTS},
  {name: 'merges as pairs', patch: {model: {merges: MERGES.map((merge) => merge.split(' '))}}, texts: TEXTS},
  {name: 'ignore_merges', patch: {...regex('\\s?\\p{L}+'), model: {ignore_merges: true, vocab: {'Ġtrail': nextId, trail: nextId + 1}}}, texts: TEXTS},
  {name: 'GPT-2 pattern', patch: alone({use_regex: true}), texts: TEXTS},
  {name: 'prefix space', patch: {added_tokens: ADDED, ...alone({add_prefix_space: true, use_regex: true})}, texts: ADDED_TEXTS},
  {name: 'prefix space on pieces', patch: {pre_tokenizer: {pretokenizers: [split({Regex: '\\s+'}), {...BYTE_LEVEL, add_prefix_space: true}]}}, texts: TEXTS},
  {name: 'single digits', patch: sequence({type: 'Digits', individual_digits: true}), texts: TEXTS},
  {name: 'whole numbers', patch: sequence({type: 'Digits', individual_digits: false}), texts: TEXTS},
  {name: 'split at strings', patch: sequence(split({String: '..'}), split({String: ' '})), texts: TEXTS},
  {name: 'removed', patch: sequence(split({Regex: '\\s+'}, 'Removed')), texts: TEXTS},
  {name: 'all but matches removed', patch: sequence(split({Regex: '\\p{L}+'}, 'Removed', true)), texts: TEXTS},
  {name: 'empty matches', patch: regex('o*', '(?=(\\d{3})+(?!\\d))'), texts: TEXTS},
  {name: 'lookbehind', patch: regex('(?<=[a-z])(?=[A-Z])', '(?<!\\.)\\.'), texts: TEXTS},
  {name: 'lazy and possessive', patch: regex('a.*?c', '\\p{Nd}++', '(?>x|xy)y?', '[b-d]{1,2}'), texts: TEXTS},
  {name: 'escapes', patch: regex('[\\t\\x0b\\u00a0\\x{3000}]', '\\D\\S\\P{L}', '[^\\w\\s]', '\\d+|\\s+$'), texts: TEXTS},
  {name: 'cl100k', patch: regex('(?i:\'s|\'t|\'re|\'ve|\'m|\'ll|\'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'), texts: TEXTS},
  {name: 'o200k', patch: regex('[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:\'s|\'t|\'re|\'ve|\'m|\'ll|\'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:\'s|\'t|\'re|\'ve|\'m|\'ll|\'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'), texts: TEXTS},
  {name: 'DeepSeek-V2 style', patch: sequence(split({Regex: '[\r\n]'}), split({Regex: '\\s?[A-Za-zµÀ-ÖØ-öø-ƺǄ-ʓ]+'}), split({Regex: '\\s?[!-/:-~！-／：-～‘-‟　-。]+'}), split({Regex: '\\s+$'}), split({Regex: '[一-龥ࠀ-一가-퟿]+'}), {type: 'Digits', individual_digits: true}), texts: TEXTS},
  {name: 'added tokens', patch: {added_tokens: ADDED}, texts: ADDED_TEXTS},
  {name: 'template', patch: {added_tokens: ADDED, post_processor: template('<bos>', '$A', '<eos>', '<eos>')}, texts: ['', 'the end', '<bos>x']},
  {name: 'template in a sequence', patch: {added_tokens: ADDED, post_processor: {type: 'Sequence', processors: [offsets, template('<bos>', '$A'), offsets]}}, texts: ['', 'the end']},
];
