// The reference: Hugging Face tokenizers, the Rust library, through its own Node binding.
import {createRequire} from 'node:module';

export const {Tokenizer} = createRequire(import.meta.url)('tokenizers');

// A tokenizer.json that does nothing but what `parts` says.
export const bareTokenizer = (parts) => ({
  version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null,
  pre_tokenizer: null, post_processor: null, decoder: null,
  model: {
    type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null,
    end_of_word_suffix: null, fuse_unk: false, byte_fallback: false, vocab: {}, merges: [],
  },
  ...parts,
});

// RFC 7386: null deletes.
export function mergePatch(target, patch) {
  if (typeof patch !== 'object' || Array.isArray(patch)) return patch;
  const isObject = typeof target === 'object' && target !== null && !Array.isArray(target);
  const merged = isObject ? {...target} : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete merged[key];
    else merged[key] = mergePatch(merged[key], value);
  }
  return merged;
}

// All characters of `text` that the regular expression `pattern` matches.
export function matches(pattern, text) {
  const json = bareTokenizer({
    pre_tokenizer: {type: 'Split', pattern: {Regex: pattern}, behavior: 'Removed', invert: true},
  });
  const pieces = Tokenizer.fromString(JSON.stringify(json)).getPreTokenizer().preTokenizeString(text);
  return pieces.map(([piece]) => piece).join('');
}
