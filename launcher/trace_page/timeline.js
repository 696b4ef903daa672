// The timeline: lanes of spans on a canvas. A rank is folded to one lane of its innermost spans, or
// has a lane for each actor and depth of nesting.
const GUTTER = 156, RULER = 26, LANE = 17, GAP = 7;

class Timeline {
  constructor(canvas, details) {
    this.canvas = canvas;
    this.details = details;
    this.context = canvas.getContext('2d');
    const first = firstStep();  // loading is before it
    this.view = {from: first - (LAST - first) * 0.01, to: LAST, top: 0};
    this.folded = new Set(RANKS.length > 4 ? RANKS.slice(2) : []);
    this.selected = null;
    this.matcher = null;
    this.found = [];
    this.next = 0;
    this.innermost = new Map(PROCESSES.map((process) => [process, innermost(process.spans)]));
    this.layOut();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // ---- lanes ----

  layOut() {
    this.lanes = [];
    let y = 0;
    for (const process of PROCESSES) {
      const folded = this.folded.has(process);
      const first = {process, y, label: process.label, title: true};
      if (folded) {
        this.lanes.push({...first, pieces: this.innermost.get(process)});
        y += LANE;
      } else {
        for (const lane of lanesOf(process)) {
          this.lanes.push({...lane, process, y, title: lane === lane.firstOfProcess});
          y += LANE;
        }
      }
      process.top = first.y;
      process.bottom = y;
      y += GAP;
    }
    this.height = y;
    this.canvas.style.height = Math.min(y + RULER + 2 * GAP, innerHeight * 0.62) + 'px';
  }

  toggle(process) {
    if (!this.folded.delete(process)) this.folded.add(process);
    this.layOut();
    this.draw();
  }

  foldAll() {
    if (this.folded.size === PROCESSES.length) this.folded.clear();
    else this.folded = new Set(PROCESSES);
    this.layOut();
    this.draw();
  }

  // ---- the view ----

  get width() { return Math.max(1, this.canvas.clientWidth - GUTTER); }
  x(ns) { return GUTTER + (ns - this.view.from) / (this.view.to - this.view.from) * this.width; }
  ns(x) { return this.view.from + (x - GUTTER) / this.width * (this.view.to - this.view.from); }

  show(from, to) {
    const span = Math.min(Math.max(to - from, 50), LAST * 1.2);
    const middle = (from + to) / 2;
    this.view.from = Math.min(Math.max(middle - span / 2, -LAST * 0.1), LAST * 1.1 - span);
    this.view.to = this.view.from + span;
    this.draw();
  }

  zoom(factor, at = (this.view.from + this.view.to) / 2) {
    this.show(at - (at - this.view.from) * factor, at + (this.view.to - at) * factor);
  }

  move(ns, down = 0) {
    const room = Math.max(0, this.height - this.canvas.clientHeight + RULER + GAP);
    this.view.top = Math.min(Math.max(this.view.top + down, 0), room);
    this.show(this.view.from + ns, this.view.to + ns);
  }

  showStep(step) {
    let from = Infinity, to = -Infinity;
    for (const {spans} of RANKS)
      for (let i = 0; i < spans.count; ++i)
        if (spans.step[i] === step && isStep(spans, i)) {
          from = Math.min(from, spans.start[i]);
          to = Math.max(to, spans.end[i]);
        }
    if (from < to) this.show(from - (to - from) * 0.04, to + (to - from) * 0.04);
  }

  // ---- drawing ----

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    const {canvas, context} = this;
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.documentElement);
    this.ink = style.getPropertyValue('--ink');
    this.faint = style.getPropertyValue('--faint');
    this.line = style.getPropertyValue('--line');
    this.paper = style.getPropertyValue('--paper');
    this.red = style.getPropertyValue('--select');
    context.textBaseline = 'middle';
    context.save();
    context.beginPath();
    context.rect(GUTTER, RULER, this.width, canvas.clientHeight - RULER);
    context.clip();
    for (const lane of this.lanes) this.paintLane(lane);
    this.paintArrows();
    this.paintSelected();
    context.restore();
    this.paintLabels();
    this.paintRuler();
  }

  laneY(lane) { return RULER + GAP + lane.y - this.view.top; }

  paintLane(lane) {
    const y = this.laneY(lane);
    if (y + LANE < RULER || y > this.canvas.clientHeight) return;
    const {context} = this, {start, end, index} = lane.pieces;
    const {from, to} = this.view;
    let painted = -1;  // spans within one pixel are painted once
    for (let k = firstEnding(end, from); k < index.length && start[k] < to; ++k) {
      const left = Math.max(this.x(start[k]), GUTTER - 2);
      const right = Math.max(this.x(end[k]), left + 0.6);
      if (right <= painted) continue;
      const i = index[k];
      const color = COLORS[lane.process.spans.name[i]];
      const dim = this.matcher && !this.matcher(lane.process, i);
      context.globalAlpha = dim ? 0.13 : 1;
      context.fillStyle = color.fill;
      const gap = right - left > 3 ? 0.7 : 0;
      context.fillRect(left, y, right - left - gap, LANE - 2);
      if (right - left > 34) this.paintText(lane.process, i, color.ink, left, right, y);
      painted = Math.max(right, Math.floor(left) + 0.9);
    }
    context.globalAlpha = 1;
  }

  paintText(process, i, ink, left, right, y) {
    const {context} = this;
    context.font = '11px system-ui, "DejaVu Sans", sans-serif';
    context.fillStyle = ink;
    const layer = process.spans.layer[i];
    let text = name(process, i);
    const longer = layer >= 0 ? text + ' ' + layer : text;
    const room = right - left - 8;
    if (context.measureText(longer).width <= room) text = longer;
    else while (text && context.measureText(text).width > room) text = text.slice(0, -1);
    context.fillText(text, left + 4, y + LANE / 2 - 0.5);
  }

  laneForArrow(rank) {
    const process = RANKS[rank];
    return this.lanes.find((lane) => lane.process === process &&
      (lane.track === undefined || TRACE.tracks[lane.track] === 'moe')) ||
      this.lanes.find((lane) => lane.process === process);
  }

  paintArrows() {
    const visible = [];
    const chosen = this.selected;
    for (const arrow of TRACE.arrows) {
      const [from, sent, to, received] = arrow;
      if (received < this.view.from || sent > this.view.to) continue;
      const mine = chosen && (isWithin(chosen, from, sent) || isWithin(chosen, to, received));
      if (chosen ? mine : visible.length < 401) visible.push(arrow);
    }
    if (!chosen && visible.length > 400) return;
    const {context} = this;
    context.strokeStyle = context.fillStyle = chosen ? this.red : this.faint;
    context.lineWidth = chosen ? 1.4 : 0.8;
    context.globalAlpha = chosen ? 0.9 : 0.55;
    for (const [from, sent, to, received] of visible) {
      const x0 = this.x(sent), x1 = this.x(received);
      const y0 = this.laneY(this.laneForArrow(from)) + LANE / 2;
      const y1 = this.laneY(this.laneForArrow(to)) + LANE / 2;
      context.beginPath();
      context.moveTo(x0, y0);
      context.bezierCurveTo(x0 + 14, (y0 + y1) / 2, x1 - 14, (y0 + y1) / 2, x1, y1);
      context.stroke();
      context.beginPath();
      context.arc(x1, y1, 2.2, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  paintSelected() {
    if (!this.selected) return;
    const {process, i} = this.selected;
    for (const lane of this.lanes) {
      if (lane.process !== process) continue;
      if (lane.track !== undefined &&
          (lane.track !== process.spans.track[i] || lane.depth !== process.spans.depth[i])) continue;
      const left = this.x(process.spans.start[i]), right = this.x(process.spans.end[i]);
      this.context.strokeStyle = this.red;
      this.context.lineWidth = 2;
      this.context.strokeRect(left, this.laneY(lane) - 1, Math.max(2, right - left), LANE);
    }
  }

  paintLabels() {
    const {context} = this;
    context.fillStyle = this.paper;
    context.fillRect(0, 0, GUTTER, this.canvas.clientHeight);
    for (const lane of this.lanes) {
      const y = this.laneY(lane);
      if (y + LANE < RULER || y > this.canvas.clientHeight) continue;
      if (lane.title) {
        context.fillStyle = this.ink;
        context.font = '600 12px system-ui, "DejaVu Sans", sans-serif';
        context.fillText((this.folded.has(lane.process) ? '▸ ' : '▾ ') + lane.process.label, 10, y + LANE / 2);
      }
      if (lane.depth === 0) {
        context.fillStyle = this.faint;
        context.font = '11px system-ui, "DejaVu Sans", sans-serif';
        context.textAlign = 'right';
        context.fillText(TRACE.tracks[lane.track], GUTTER - 8, y + LANE / 2);
        context.textAlign = 'left';
      }
    }
  }

  paintRuler() {
    const {context} = this;
    context.fillStyle = this.paper;
    context.fillRect(0, 0, this.canvas.clientWidth, RULER);
    context.font = '11px system-ui, "DejaVu Sans", sans-serif';
    const wished = (this.view.to - this.view.from) / Math.max(2, this.width / 120);
    const power = 10 ** Math.floor(Math.log10(wished));
    const unit = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= wished);
    context.strokeStyle = this.line;
    context.lineWidth = 1;
    for (let ns = Math.ceil(this.view.from / unit) * unit; ns <= this.view.to; ns += unit) {
      const x = Math.round(this.x(ns)) + 0.5;
      context.fillStyle = this.faint;
      context.fillText(formatTime(ns), x + 4, RULER / 2);
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, this.canvas.clientHeight);
      context.globalAlpha = 0.5;
      context.stroke();
      context.globalAlpha = 1;
    }
    context.beginPath();
    context.moveTo(0, RULER - 0.5);
    context.lineTo(this.canvas.clientWidth, RULER - 0.5);
    context.stroke();
  }

  // ---- what is under the pointer, and selected ----

  at(x, y) {
    const lane = this.lanes.find((l) => y >= this.laneY(l) && y < this.laneY(l) + LANE);
    if (!lane || y < RULER) return null;
    if (x < GUTTER) return {process: lane.process};
    const ns = this.ns(x), slack = this.ns(x + 2) - ns;
    const k = firstEnding(lane.pieces.end, ns - slack);
    if (k >= lane.pieces.index.length || lane.pieces.start[k] > ns + slack) return null;
    return {process: lane.process, i: lane.pieces.index[k]};
  }

  select(hit) {
    this.selected = hit;
    this.describe(hit);
    this.draw();
  }

  describe(hit) {
    this.details.replaceChildren();
    if (!hit) return;
    const {process, i} = hit, {spans} = process;
    const add = (tag, text) => {
      const element = document.createElement(tag);
      element.textContent = text;
      this.details.append(element);
    };
    add('b', name(process, i));
    add('span', process.label + ', ' + TRACE.tracks[spans.track[i]]);
    add('span', formatTime(spans.duration[i]));
    if (spans.self[i] !== spans.duration[i]) add('span', 'itself ' + formatTime(spans.self[i]));
    add('span', 'at ' + formatTime(spans.start[i]));
    if (spans.step[i] > 0) add('span', 'step ' + spans.step[i]);
    if (spans.layer[i] >= 0) add('span', 'layer ' + spans.layer[i]);
    if (spans.tokens[i] > 0) add('span', spans.tokens[i] + ' rows');
    if (spans.bytes[i] > 0) add('span', formatBytes(spans.bytes[i]));
    if (spans.peer[i] >= 0) add('span', (name(process, i) === 'wait' ? 'for rank ' : 'rank ') + spans.peer[i]);
  }

  // ---- search ----

  search(text) {
    this.matcher = text.trim() ? makeMatcher(text) : null;
    this.found = [];
    this.next = 0;
    if (this.matcher)
      for (const process of PROCESSES)
        for (let i = 0; i < process.spans.count; ++i)
          if (this.matcher(process, i)) this.found.push({process, i});
    this.found.sort((a, b) => a.process.spans.start[a.i] - b.process.spans.start[b.i]);
    this.draw();
    return this.matcher ? this.found.length : null;
  }

  showNext() {
    if (!this.found.length) return;
    const hit = this.found[this.next++ % this.found.length];
    const {start, end} = hit.process.spans;
    const around = Math.max((end[hit.i] - start[hit.i]) * 6, 20000);
    this.view.top = Math.max(0, hit.process.top - 60);
    this.show((start[hit.i] + end[hit.i] - around) / 2, (start[hit.i] + end[hit.i] + around) / 2);
    this.select(hit);
  }

  // ---- input ----

  listen() {
    const {canvas} = this;
    canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      if (event.shiftKey) this.move(0, event.deltaY || event.deltaX);
      else if (Math.abs(event.deltaX) > Math.abs(event.deltaY))
        this.move(this.ns(event.deltaX) - this.ns(0));
      else this.zoom(1.0015 ** event.deltaY, this.ns(event.offsetX));
    }, {passive: false});
    let drag = null;
    canvas.addEventListener('pointerdown', (event) => {
      drag = {x: event.clientX, y: event.clientY, far: 0};
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!drag) {
        if (!this.selected) {
          const hit = this.at(event.offsetX, event.offsetY);
          this.describe(hit && hit.i !== undefined ? hit : null);
        }
        return;
      }
      const x = event.clientX - drag.x, y = event.clientY - drag.y;
      drag = {x: event.clientX, y: event.clientY, far: drag.far + Math.abs(x) + Math.abs(y)};
      this.move(this.ns(0) - this.ns(x), -y);
    });
    canvas.addEventListener('pointerup', (event) => {
      const clicked = drag && drag.far < 4;
      drag = null;
      if (!clicked) return;
      const hit = this.at(event.offsetX, event.offsetY);
      if (hit && hit.i === undefined) this.toggle(hit.process);
      else this.select(hit);
    });
    canvas.addEventListener('dblclick', (event) => {
      const hit = this.at(event.offsetX, event.offsetY);
      if (!hit || hit.i === undefined) return;
      const {start, end} = hit.process.spans;
      const edge = (end[hit.i] - start[hit.i]) * 0.05;
      this.show(start[hit.i] - edge, end[hit.i] + edge);
    });
  }
}

function firstStep() {
  let first = LAST;
  for (const {spans} of RANKS)
    for (let i = 0; i < spans.count && spans.start[i] < first; ++i)
      if (isStep(spans, i)) first = spans.start[i];
  return first < LAST ? first : 0;
}

function isStep(spans, i) {
  const text = TRACE.names[spans.name[i]][0];
  return text === 'prefill' || text === 'decode';
}

function isWithin({process, i}, rank, ns) {
  return process.rank === rank && process.spans.start[i] <= ns && ns <= process.spans.end[i];
}

// Index of the first span that ends after `ns`: the spans of a lane do not overlap.
function firstEnding(end, ns) {
  let low = 0, high = end.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (end[middle] > ns) high = middle;
    else low = middle + 1;
  }
  return low;
}

// A lane for each track of a process and depth in it.
function lanesOf(process) {
  const {spans} = process;
  const lanes = new Map();
  for (let i = 0; i < spans.count; ++i) {
    const key = spans.track[i] * 100 + spans.depth[i];
    if (!lanes.has(key)) lanes.set(key, []);
    lanes.get(key).push(i);
  }
  const sorted = [...lanes.entries()].sort(([a], [b]) => a - b).map(([key, index]) => ({
    track: Math.floor(key / 100),
    depth: key % 100,
    pieces: {
      index,
      start: Float64Array.from(index, (i) => spans.start[i]),
      end: Float64Array.from(index, (i) => spans.end[i]),
    },
  }));
  for (const lane of sorted) lane.firstOfProcess = sorted[0];
  return sorted;
}

// The innermost span at each moment, as pieces one after the other.
function innermost(spans) {
  const index = [], start = [], end = [];
  const add = (i, from, to) => {
    if (from < to) { index.push(i); start.push(from); end.push(to); }
  };
  const around = [];
  let now = 0;
  const passTo = (until) => {
    while (around.length && spans.end[around.at(-1)] <= until) {
      const i = around.pop();
      add(i, now, spans.end[i]);
      now = Math.max(now, spans.end[i]);
    }
    if (around.length) add(around.at(-1), now, until);
    now = until;
  };
  for (let i = 0; i < spans.count; ++i) {
    passTo(spans.start[i]);
    around.push(i);
  }
  passTo(Infinity);
  return {index, start: Float64Array.from(start), end: Float64Array.from(end)};
}
