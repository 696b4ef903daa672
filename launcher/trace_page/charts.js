// Tables and charts below the timeline.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function fill(id, ...children) {
  const place = document.getElementById(id);
  if (children.length) place.replaceChildren(...children);
  else place.replaceChildren(element('p', {class: 'none'}, 'nothing of it in this trace'));
}

// What the time of a span itself counts as; the same as in launcher/trace_summary.cc.
function kindOf(text, kind) {
  if (text === 'wait') return 'wait';
  if (text === 'await_plan') return 'plan';
  return kind === 'compute' || kind === 'communication' ? kind : 'other';
}

// Pauses, in which nobody asked for anything, count as nothing.
function ownTime(spans, i) {
  if (TRACE.names[spans.name[i]][0] !== 'await_plan') return spans.self[i];
  return TRACE.pauses.reduce(
    (own, [start, end]) =>
      own - Math.max(0, Math.min(end, spans.end[i]) - Math.max(start, spans.start[i])),
    spans.self[i]);
}

function sumSelf() {
  const byRank = RANKS.map(() => ({compute: 0, communication: 0, wait: 0, plan: 0, other: 0}));
  const byName = TRACE.names.map(() => ({calls: 0, ns: 0}));
  RANKS.forEach(({spans}, rank) => {
    for (let i = 0; i < spans.count; ++i) {
      const [text, kind] = TRACE.names[spans.name[i]];
      const own = ownTime(spans, i);
      byRank[rank][kindOf(text, kind)] += own;
      byName[spans.name[i]].ns += own;
      ++byName[spans.name[i]].calls;
    }
  });
  return {byRank, byName};
}

function showShares(byRank) {
  const grid = element('div', {class: 'share'});
  byRank.forEach((times, rank) => {
    const sum = Object.values(times).reduce((a, b) => a + b, 0) || 1;
    const bar = element('div', {class: 'bar'});
    for (const [kind, ns] of Object.entries(times)) {
      const part = element('i', {title: `${kind} ${formatTime(ns)}, ${(100 * ns / sum).toFixed(1)} %`});
      part.style.width = 100 * ns / sum + '%';
      part.style.background = KINDS[kind];
      bar.append(part);
    }
    grid.append(element('span', {class: 'name'}, 'rank ' + rank), bar,
                element('span', {class: 'value'}, formatTime(sum)));
  });
  const meaning = {
    compute: 'operations', communication: 'copying of collectives', wait: 'for other ranks',
    plan: "for the scheduler's next plan", other: 'messages',
  };
  const legend = element('p', {class: 'legend'});
  for (const [kind, text] of Object.entries(meaning)) {
    const swatch = element('i', {class: 'swatch'});
    swatch.style.background = KINDS[kind];
    legend.append(element('span', {}, swatch, kind + ': ' + text));
  }
  fill('shares', grid, legend);
}

function showOperations(byName) {
  const all = byName.reduce((sum, time) => sum + time.ns, 0) || 1;
  const rows = byName.map((time, i) => ({...time, i})).filter((time) => time.calls)
    .sort((a, b) => b.ns - a.ns).slice(0, 20);
  const head = ['operation', 'calls', 'itself', 'mean', 'share'].map(
    (text, c) => element('th', c ? {} : {class: 'name'}, text));
  const table = element('table', {}, element('tr', {}, ...head));
  for (const {i, calls, ns} of rows) {
    const swatch = element('i', {class: 'swatch'});
    swatch.style.background = COLORS[i].fill;
    table.append(element('tr', {},
      element('td', {class: 'name'}, swatch, TRACE.names[i][0]), element('td', {}, String(calls)),
      element('td', {}, formatTime(ns)), element('td', {}, formatTime(ns / calls)),
      element('td', {}, (100 * ns / all).toFixed(1) + ' %')));
  }
  fill('operations', table);
}

// values[row][column] as a table whose cells are the darker the larger their value.
function heatTable(corner, rows, columns, values, format) {
  const most = Math.max(1, ...values.flat());
  const table = element('table', {class: 'heat'});
  table.append(element('tr', {}, element('th', {class: 'name'}, corner),
                       ...columns.map((text) => element('th', {}, text))));
  values.forEach((line, r) => {
    const cells = line.map((value) => {
      const cell = element('td', {'data-value': value}, value ? format(value) : '·');
      cell.style.background = `hsl(var(--heat) / ${(0.85 * value / most).toFixed(3)})`;
      return cell;
    });
    table.append(element('tr', {}, element('th', {class: 'name'}, rows[r]), ...cells));
  });
  return table;
}

const sumOf = (list) => list.reduce((a, b) => a + b, 0);

function showExperts() {
  const layers = TRACE.expert_rows[0].map((_, layer) => layer)
    .filter((layer) => TRACE.expert_rows.some((rank) => sumOf(rank[layer]) > 0));
  if (!layers.length) return fill('experts');
  const values = layers.map((layer) => TRACE.expert_rows.map((rank) => sumOf(rank[layer])));
  fill('experts', heatTable('layer', layers.map(String), RANKS.map((r) => r.label), values, String));
}

function showBytes() {
  if (!TRACE.sent_bytes.flat().some((bytes) => bytes > 0)) return fill('bytes');
  const ranks = RANKS.map(({rank}) => String(rank));
  fill('bytes', heatTable('from \\ to', ranks, ranks, TRACE.sent_bytes, formatBytes));
}

// Lines over time: series of {label, points [[ns, value], ...]}; `most`: the top of the axis.
function lineChart(series, most, format) {
  const W = 560, H = 180, left = 46, right = 10, top = 8, bottom = 22;
  const x = (ns) => left + ns / LAST * (W - left - right);
  const y = (value) => H - bottom - value / most * (H - top - bottom);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const at = y(share * most).toFixed(1);
    parts.push(`<line class="grid" x1="${left}" x2="${W - right}" y1="${at}" y2="${at}"/>`,
               `<text x="${left - 6}" y="${+at + 4}" text-anchor="end">${format(share * most)}</text>`);
  }
  for (const share of [0, 0.5, 1])
    parts.push(`<text x="${x(share * LAST)}" y="${H - 5}" text-anchor="${['start', 'middle', 'end'][share * 2]}">` +
               `${formatTime(share * LAST)}</text>`);
  series.forEach(({points}, i) => {
    const color = `hsl(${(205 + i * 47) % 360} 62% 52%)`;
    const path = points.map(([ns, value]) => x(ns).toFixed(1) + ',' + y(value).toFixed(1)).join(' ');
    parts.push(`<polyline fill="none" stroke="${color}" stroke-width="1.6" points="${path}"/>`);
  });
  const svg = element('div');
  svg.innerHTML = `<svg viewBox="0 0 ${W} ${H}" role="img">${parts.join('')}</svg>`;
  return svg.firstChild;
}

// At most `count` points, each the largest of its neighbours.
function thin(points, count = 500) {
  const every = Math.ceil(points.length / count);
  if (every <= 1) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += every)
    kept.push(points.slice(i, i + every).reduce((a, b) => (b[1] > a[1] ? b : a)));
  return kept;
}

function counter(text) {
  const found = TRACE.counters.find((one) => one.name === text);
  return found ? found.points : [];
}

function showKvBlocks() {
  const series = TRACE.counters.filter((one) => one.name.startsWith('kv_blocks '))
    .map(({name: label, points}) => ({label, points: thin(points)}));
  if (!series.length) return fill('kv');
  const most = Math.max(1, ...series.flatMap(({points}) => points.map(([, value]) => value)));
  fill('kv', lineChart(series, most, (value) => value.toFixed(value % 1 ? 1 : 0)));
}

// The share of the drafts of the last steps that were accepted.
function showAcceptance() {
  const drafted = counter('drafted'), accepted = counter('accepted');
  const points = [];
  const window = 8;
  for (let i = 0; i < Math.min(drafted.length, accepted.length); ++i) {
    const from = Math.max(0, i - window + 1);
    const sum = (list) => sumOf(list.slice(from, i + 1).map(([, value]) => value));
    if (sum(drafted) > 0) points.push([drafted[i][0], sum(accepted) / sum(drafted)]);
  }
  if (!points.length) return fill('acceptance');
  const kept = points.filter((_, i) => i % Math.ceil(points.length / 500) === 0);
  fill('acceptance', lineChart([{label: 'accepted', points: kept}], 1, (v) => (100 * v).toFixed(0) + ' %'));
}
