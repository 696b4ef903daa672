// Puts the page together. `#step=12` and `#search=gate` in the address are where it opens.
function describeTrace() {
  const steps = new Set();
  let spans = 0;
  for (const {spans: all} of RANKS) {
    spans += all.count;
    for (let i = 0; i < all.count; ++i) if (isStep(all, i)) steps.add(all.step[i]);
  }
  document.getElementById('about').textContent =
    `${RANKS.length} ranks · ${steps.size} steps · ${formatTime(LAST)} · ${spans} spans`;
  const forgotten = Math.max(...PROCESSES.map((process) => process.forgotten));
  if (forgotten > 0) {
    const line = document.getElementById('forgotten');
    line.hidden = false;
    line.textContent =
      `The end of the run: up to ${forgotten} earlier events of a process are not kept.`;
  }
  document.body.dataset.spans = spans;
  document.body.dataset.steps = steps.size;
}

function listen(timeline) {
  const search = document.getElementById('search'), found = document.getElementById('found');
  const find = () => {
    const count = timeline.search(search.value);
    found.textContent = count === null ? '' : count + ' found';
  };
  search.addEventListener('input', find);
  search.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') timeline.showNext();
    if (event.key === 'Escape') { search.value = ''; find(); timeline.select(null); search.blur(); }
    event.stopPropagation();
  });
  const width = () => timeline.view.to - timeline.view.from;
  const actions = {
    w: () => timeline.zoom(0.6), s: () => timeline.zoom(1.7), '+': () => timeline.zoom(0.6),
    '-': () => timeline.zoom(1.7), f: () => timeline.show(0, LAST), c: () => timeline.foldAll(),
    a: () => timeline.move(-width() / 4), d: () => timeline.move(width() / 4),
    ArrowLeft: () => timeline.move(-width() / 4), ArrowRight: () => timeline.move(width() / 4),
    ArrowUp: () => timeline.move(0, -60), ArrowDown: () => timeline.move(0, 60),
    n: () => timeline.showNext(), Escape: () => timeline.select(null), '/': () => search.focus(),
  };
  addEventListener('keydown', (event) => {
    const action = actions[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith('Arrow') && document.activeElement !== timeline.canvas) return;
    event.preventDefault();
    action();
  });
  const buttons = {'zoom-in': 'w', 'zoom-out': 's', fit: 'f', fold: 'c'};
  for (const [id, key] of Object.entries(buttons))
    document.getElementById(id).addEventListener('click', () => actions[key]());

  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has('step')) timeline.showStep(Number(wanted.get('step')));
  if (wanted.has('search')) {
    search.value = wanted.get('search');
    find();
    timeline.showNext();
  }
}

addEventListener('error', (event) => { document.body.dataset.error = event.message; });
describeTrace();
listen(new Timeline(document.getElementById('canvas'), document.getElementById('details')));
const {byRank, byName} = sumSelf();
showShares(byRank);
showOperations(byName);
showExperts();
showBytes();
showKvBlocks();
showAcceptance();
document.body.dataset.ready = 'yes';
