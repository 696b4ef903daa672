// The texts of the test vectors: one of each kind by hand, then seeded mixtures of all kinds.

const CODE = [
  '#include <vector>\n\ntemplate <class T>\nT sum(const std::vector<T>& v) {\n  T total{};\n' +
      '  for (size_t i = 0; i < v.size(); ++i) total += v[i];  // 0x1F, 1e-9f\n  return total;\n}\n',
  'def quick_sort(xs):\n    if len(xs) <= 1:\n        return xs\n    pivot = xs[len(xs) // 2]\n' +
      '    left  = [x for x in xs if x < pivot]\n\treturn quick_sort(left) + [pivot]\n',
  'class Foo(Bar):\n\n    """Doc string."""\n\n\n        deep_indent = {"key": [1, 2.5, None]}\n',
  'if(a&&b||!c){x=y?z:-w;p->q();}//done\r\n#define MAX(a,b) ((a)>(b)?(a):(b))\r\n',
  'SELECT id, COUNT(*) FROM t WHERE name LIKE \'%x%\' GROUP BY 1;',
  '<div class="a b">\n\t<p>Hello&nbsp;World</p>\n</div>\n', '$x = $y ?? @$z["k"]; \\n \\t \\\\',
  'camelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case __init__ x2y3z4',
];

const LANGUAGES = [
  'The quick brown fox jumps over the lazy dog. It\'s what they\'d said; we\'ll see, I\'m sure!',
  'Ça va? Où êtes-vous né — à l\'été? Größe, Straße, ÆØÅ, naïve café, mañana, İstanbul ıi.',
  '混合专家模型在推理时只激活一小部分参数，因此可以在普通处理器上运行。《三体》第1章：“科学边界”。',
  '深度学习（Deep Learning）是机器学习的分支，2024年发布了DeepSeek-V3，参数量为671B。𠮷野家㐀㒨龥龦鿿豈',
  '吾輩は猫である。名前はまだ無い。カタカナとひらがな、ｶﾅ、ー・ヽヾゝゞ〆々〇。東京タワーへ行きました！',
  '안녕하세요, 세계! 한국어 토크나이저를 시험합니다. ㄱㄴㄷ ㅏㅑ ᄀᄁᄂ 뷁',
  'مرحبا بالعالم، كيف حالك؟ اللُّغَةُ العَرَبِيَّةُ ١٢٣٤٥٦٧٨٩٠ ۱۲۳ فارسی می‌خواهم',
  'שלום עולם! עִבְרִית מְנֻקֶּדֶת "ציטוט"', 'Привет, мир! Съешь же ещё этих мягких французских булок.',
  'Γειά σου Κόσμε ΑΒΓ αβγ ς', 'नमस्ते दुनिया क्षत्रिय हिन्दी ०१२३४५', 'สวัสดีชาวโลก ภาษาไทย ๑๒๓ ำ', 'Tiếng Việt có dấu: ngữ pháp, đường phố',
  'ქართული ენა Հայերեն አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ខ្មែរ မြန်မာ བོད་ཡིག ᠮᠣᠩᠭᠣᠯ',
];

const SYMBOLS = [
  '😀😃😄 👍🏽 👩‍👩‍👧‍👦 👨🏿‍🚀 🏳️‍🌈 🇩🇪🇯🇵🇨🇳 ❤️ ☎️ 1️⃣ #️⃣ 🫨🩷🫎🫩🪾', 'a👍b 👍 c🫨d 🫨 e', '☃ ★ ♠♥♦♣ → ⇒ ∀x∈ℝ: ∑ᵢ xᵢ² ≤ ∞ ½ ¾ ⅓ Ⅻ ① ⑳ ㊗ ㍻ ℃ № ™ © ®',
  'e\u0301 n\u0303 a\u030a\u0323 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033da\u0334\u0319\u0324 \u0301x \u0301', 'x\u200by\u200cz\u200dw\u2060v\ufeffu\u00ads',
  '0 1 12 123 1234 12345 1234567890123456789012345678901234567890', '1,234.56 -3.14e+10 0xDEADBEEF 1_000_000 50% $9.99 €100 £5 ¥8 ₿1 3/4 10:30:59 2024-11-22T16:00:00Z 192.168.0.1 +49 (0)30 123456',
  '²³¹ ₀₁₂ ١٢٣٤ १२३४५ 一二三四 ⅠⅡⅢⅣ ①②③④⑤ 𝟎𝟏𝟐𝟑𝟒 １２３４５', 'https://example.com/path/to?q=a%20b&x=1#frag http://127.0.0.1:8000/v1/chat user@mail.example.org C:\\Users\\x\\y.txt /usr/lib/x86_64-linux-gnu',
  '!!! ??? ... !?!? ,,, ;;; ::: --- ___ === *** ### @@@ $$$ %%% ^^^ &&& ((())) [[]] {{}} <<>> \\\\ // || ~~ `` "" \'\'',
  '!hello #tag @user $var %d &amp *star +plus ,comma -dash .dot /slash :colon ;semi <tag =eq >gt ?q [b ]b ^c _u `t {c |p }c ~t \\n "q \'s',
  '，。！？；：“”‘’（）【】《》、…—～·「」『』〈〉', 'word\n\n!!\n word !?\r\n\r\n word…\n',
];

const SPACES = [
  ' ', '  ', '   a', 'a   ', 'a  b   c    d', '\t', '\t\t\tx', 'x\ty\t\tz', '\n', '\n\n\n', '\r\n', '\r\n\r\nx', ' \n ', ' \n  \n   x', 'x \n', 'x\n ', 'a\r\rb', '\u00a0', 'a\u00a0b',
  'a\u00a0\u00a0 b', '\u3000\u3000段落', 'x\u3000 \u3000y', 'a\u2028b\u2029c', '\u2028\u2029 \n', 'a\u0085b', '\u0085\u0085 x', ' \u0085 \u0085', 'a\u180eb \u180e c\u180e', '\u180e\u180e  x', '\u200b \u200b', '\v\fx \v \f', '\u1680\u2000\u2003\u2009\u200a\u202f\u205fx',
  '        deep\n                deeper\n', '\u001c\u001d\u001e\u001fx', '    \n    \n\t\n', 'end   \n',
];

const SPECIALS = [
  '<｜begin▁of▁sentence｜>', '<｜User｜>Hi<｜Assistant｜>Hello.<｜end▁of▁sentence｜>', 'x<｜User｜> <｜User｜><｜User｜>y', '<｜User｜', '<|User|>', '<｜begin▁of▁sentence｜', '<<｜User｜>>', '<｜end▁of▁sentence｜>\n\n<｜▁pad▁｜>',
  '<｜place▁holder▁no▁1｜><｜place▁holder▁no▁12｜><｜place▁holder▁no▁799｜>', '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>', '<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>',
  '｜▁｜', '<think>\nhm\n</think>',
];

const CONTROLS = ['', '\u0000', 'a\u0000b', '\u0001\u0002\u007f', '\u001b[31mred\u001b[0m', '\u0080\u0081\u009f', '\ufffd\ufffe\uffff', '\ue000\u{f0000}\u{10ffff}', '\u0378\u0379 x', '\u{1fae8}\u{31350}\u{2ebf0}\u{1c89}'];
for (let byte = 0x20; byte < 0x7f; ++byte) CONTROLS.push(String.fromCharCode(byte));

const KINDS = [CODE, LANGUAGES, SYMBOLS, SPACES, SPECIALS, CONTROLS];

// mulberry32
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export function makeMixtures(count, seed) {
  const next = random(seed);
  const below = (n) => Math.floor(next() * n);
  const pick = (list) => list[below(list.length)];
  const codePoint = () => {
    const ranges = [[0, 0x250], [0x300, 0x600], [0x2000, 0x2c00], [0x3000, 0x3400], [0x4e00, 0x9fff], [0xac00, 0xd7a3], [0xf900, 0x10000], [0x10000, 0x20000], [0x1f300, 0x1fb00], [0x20000, 0x32400]];
    const [first, end] = pick(ranges);
    return String.fromCodePoint(first + below(end - first));
  };
  const stretch = () => {
    if (below(5) === 0) return codePoint();
    const characters = [...pick(pick(KINDS))];
    const start = below(characters.length);
    return characters.slice(start, start + 1 + below(12)).join('');
  };
  return Array.from({length: count}, () => Array.from({length: 1 + below(9)}, stretch).join(''));
}

export const corpus = [...KINDS.flat(), ...makeMixtures(500, 20241226)];
