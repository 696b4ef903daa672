// Writes model/unicode_additions.cc: what the reference's regular expressions know beyond Unicode 14.
// Perl (5.36 and newer) tells what Unicode 14 had.
import {execFileSync} from 'node:child_process';
import {writeFileSync} from 'node:fs';

import {matches} from './reference.mjs';

const CATEGORIES =
    'Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp'.split(' ');

const script = 'for (0..0xd7ff, 0xe000..0x10ffff) { print "$_\\n" if chr !~ /\\p{Present_In: 14.0}/ }';
const missing = execFileSync('perl', ['-e', script], {encoding: 'utf8', maxBuffer: 1 << 28})
                    .trim().split('\n').map(Number);

const rows = [];
for (const category of CATEGORIES) {
  for (let i = 0; i < missing.length; i += 20000) {
    const text = String.fromCodePoint(...missing.slice(i, i + 20000));
    for (const character of matches(`\\p{${category}}`, text)) {
      const code = character.codePointAt(0);
      const row = rows.at(-1);
      if (row && row.last === code - 1 && row.category === category) row.last = code;
      else rows.push({first: code, last: code, category});
    }
  }
}
rows.sort((a, b) => a.first - b.first);

const hex = (code) => `0x${code.toString(16)}`;
const items = rows.map((row) => `    {${hex(row.first)}, ${hex(row.last)}, "${row.category}"},`);
writeFileSync(new URL('../../model/unicode_additions.cc', import.meta.url),
`// Made by tools/tokenizer_vectors/make_unicode_additions.mjs.
#include "model/unicode_additions.h"

namespace troupe::model {

namespace {

constexpr UnicodeAddition kRows[] = {
${items.join('\n')}
};

}  // namespace

const std::span<const UnicodeAddition> kUnicodeAdditions(kRows);

}  // namespace troupe::model
`);
