// The trace, as the rest of the page uses it. What a file holds: launcher/trace_page.h.
const TRACE = JSON.parse(document.getElementById('trace').textContent);

// Fields of a span in the flat list of its process.
const FIELDS = ['name', 'track', 'start', 'duration', 'step', 'layer', 'tokens', 'bytes', 'peer'];

// Spans of a process as one typed array per field, with what follows from their nesting: depth
// within their track, and the time that is their own.
function readProcess(process) {
  const count = process.spans.length / FIELDS.length;
  const spans = {count, end: new Float64Array(count), depth: new Uint8Array(count)};
  FIELDS.forEach((field, f) => {
    spans[field] = Float64Array.from({length: count}, (_, i) => process.spans[i * FIELDS.length + f]);
  });
  spans.self = spans.duration.slice();
  const around = [];
  for (let i = 0; i < count; ++i) {
    spans.end[i] = spans.start[i] + spans.duration[i];
    while (around.length && spans.end[around.at(-1)] <= spans.start[i]) around.pop();
    if (around.length) spans.self[around.at(-1)] -= spans.duration[i];
    spans.depth[i] = around.filter((a) => spans.track[a] === spans.track[i]).length;
    around.push(i);
  }
  const label = process.rank < 0 ? 'launcher' : 'rank ' + process.rank;
  return {rank: process.rank, label, forgotten: process.forgotten, spans};
}

const PROCESSES = TRACE.processes.map(readProcess);
const RANKS = PROCESSES.filter((process) => process.rank >= 0);
const LAST = Math.max(1, ...PROCESSES.map((process) => process.spans.end.reduce((a, b) => Math.max(a, b), 0)));

const name = (process, i) => TRACE.names[process.spans.name[i]][0];
const category = (process, i) => TRACE.names[process.spans.name[i]][1];

// Hues by category, so that a glance tells work from waiting; within one, neighbours differ.
const HUES = {compute: [155, 250], communication: [12, 48], control: [285, 325]};
const COLORS = (() => {
  const seen = {};
  const total = {};
  for (const [, kind] of TRACE.names) total[kind] = (total[kind] || 0) + 1;
  return TRACE.names.map(([, kind]) => {
    if (!HUES[kind]) return {fill: 'hsl(220 8% 72%)', ink: '#333a48'};
    const i = seen[kind] = (seen[kind] || 0) + 1;
    const [low, high] = HUES[kind];
    const hue = low + (high - low) * ((i * 0.618) % 1);
    return {fill: `hsl(${hue.toFixed(0)} 62% ${i % 2 ? 62 : 71}%)`, ink: '#10151f'};
  });
})();
const KINDS = {
  compute: 'hsl(205 60% 55%)', communication: 'hsl(30 70% 56%)', wait: 'hsl(220 8% 68%)',
  plan: 'hsl(220 10% 84%)', other: 'hsl(300 30% 62%)',
};

function formatTime(ns) {
  const size = Math.abs(ns);
  if (size < 1e3) return ns.toFixed(0) + ' ns';
  if (size < 1e6) return (ns / 1e3).toFixed(size < 1e4 ? 2 : 1) + ' µs';
  if (size < 1e9) return (ns / 1e6).toFixed(size < 1e7 ? 3 : 1) + ' ms';
  return (ns / 1e9).toFixed(3) + ' s';
}

function formatBytes(bytes) {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; ++unit; }
  return (unit && bytes < 100 ? bytes.toFixed(1) : bytes.toFixed(0)) + ' ' + units[unit];
}

// What a search means: words of an operation's name, and step:, layer:, rank: with a number.
function makeMatcher(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = {};
  const names = [];
  for (const word of words) {
    const field = word.match(/^(step|layer|rank):(\d+)$/);
    if (field) wanted[field[1]] = Number(field[2]);
    else names.push(word);
  }
  const matches = TRACE.names.map(([text]) => names.every((word) => text.includes(word)));
  return (process, i) => matches[process.spans.name[i]] &&
    (wanted.rank === undefined || process.rank === wanted.rank) &&
    (wanted.step === undefined || process.spans.step[i] === wanted.step) &&
    (wanted.layer === undefined || process.spans.layer[i] === wanted.layer);
}
