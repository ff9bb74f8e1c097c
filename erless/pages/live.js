// The live page: asks for what runs every second, draws it, and tells what changed.
const KEEP = 600, EVERY_MS = 1000;
const at = id => document.getElementById(id);
const known = JSON.parse(at('known').textContent);
const series = { traffic: [], latency: [], memory: [], whole: [] };
let before = null, release = null, quiet = true, timer = 0;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function size(bytes) {
  for (const [limit, unit] of [[1e12, 'TB'], [1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB']])
    if (bytes >= limit) return `${+(bytes / limit).toPrecision(3)} ${unit}`;
  return `${bytes} B`;
}

const rate = value => value >= 100 ? Math.round(value).toLocaleString('en') : `${+value.toPrecision(2)}`;

function tell(text) {
  const list = at('events'), line = make('li');
  if (quiet) { list.textContent = ''; quiet = false; }
  line.append(make('time', new Date().toLocaleTimeString()), text);
  list.prepend(line);
  while (list.children.length > 200) list.lastChild.remove();
}

function changes(now) {
  if (release !== null && now.release !== release) tell(`release ${now.release.slice(0, 12)} answers`);
  release = now.release;
  if (before) {
    const gone = new Set(Object.keys(before));
    for (const each of now.functions) {
      gone.delete(each.name);
      const old = before[each.name];
      if (!old) { tell(`${each.name}: new`); continue; }
      if (old.ready === 0 && each.ready > 0) tell(`${each.name}: woke from zero (cold start)`);
      else if (old.ready > 0 && each.ready === 0 && each.wanted === 0) tell(`${each.name}: scaled to zero`);
      else if (old.ready !== each.ready) tell(`${each.name}: ${old.ready} → ${each.ready} replicas`);
      if (old.state !== each.state && each.reason) tell(`${each.name}: ${each.state}: ${each.reason}`);
    }
    for (const name of gone) tell(`${name}: removed`);
    if (now.generation !== undefined && before.generation !== undefined && now.generation !== before.generation)
      tell(`generation ${now.generation} is answered with`);
  }
  before = Object.fromEntries(now.functions.map(each => [each.name, each]));
  Object.defineProperty(before, 'generation', { value: now.generation });
}

function tiles(now, traffic, latency) {
  const entries = [[rate(traffic), 'queries/s'], [latency === null ? '–' : `${+latency.toPrecision(3)} ms`, 'p95 of the gateway'],
    [size(now.memory_bytes), 'memory, all processes']];
  if (now.model_wise_bytes) entries.push([size(now.model_wise_bytes), 'of whole models, for as many replicas']);
  entries.push([now.functions.reduce((sum, each) => sum + each.ready, 0), 'replicas ready'],
    [now.functions.filter(each => each.wanted === 0 && each.ready === 0).length, 'functions at zero']);
  if (now.generation) entries.push([`${now.generation}`, `generation, ${Math.round(now.generation_age_s || 0).toLocaleString('en')} s old`]);
  if (now.drift !== undefined) entries.push([`${now.drift}`, 'drift']);
  at('tiles').replaceChildren(...entries.map(([value, meaning]) => {
    const tile = make('div', undefined, 'tile');
    tile.append(make('b', value), make('span', meaning));
    return tile;
  }));
}

function card(each) {
  const box = make('div', undefined, `function ${each.state === 'at zero' ? 'zero' : each.state}`);
  const head = make('b', each.name);
  head.append(make('span', each.state, 'soft'));
  box.append(head, make('div', `${each.tier || each.kind} · ${each.ready} of ${each.wanted} replicas`),
    make('div', `${rate(each.rps)} calls/s · ${size(each.memory_bytes)}` +
      (each.p95_ms === null ? '' : ` · p95 ${+each.p95_ms.toPrecision(3)} ms`), 'soft'));
  if (each.reason) box.append(make('div', each.reason, 'bad'));
  return box;
}

function topology(now) {
  const gateways = make('div'), others = make('div', undefined, 'others');
  for (const each of now.functions) (each.kind === 'gateway' ? gateways : others).append(card(each));
  at('topology').replaceChildren(gateways, others);
}

function spark(name, unit, lines) {
  const box = make('div'), title = make('h3', `${name}: `);
  const last = lines[0].values.findLast(value => value !== null);
  title.append(make('b', last === undefined ? 'none yet' : unit(last)));
  if (lines[1]) title.append(`, ${lines[1].name} ${unit(lines[1].values.at(-1) ?? 0)}`);
  const ns = 'http://www.w3.org/2000/svg', svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('viewBox', `0 0 ${KEEP} 56`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', title.textContent);
  const top = Math.max(1e-9, ...lines.flatMap(line => line.values.filter(value => value !== null)));
  for (const line of lines) {
    let pen = 'M', path = '';
    line.values.forEach((value, index) => {
      if (value === null) { pen = 'M'; return; }
      path += `${pen}${KEEP - line.values.length + index} ${(53 - 50 * value / top).toFixed(1)}`;
      pen = 'L';
    });
    const drawn = document.createElementNS(ns, 'path');
    drawn.setAttribute('class', line.dash ? 'line dash' : 'line');
    drawn.setAttribute('vector-effect', 'non-scaling-stroke');
    drawn.setAttribute('style', `stroke:var(--c${line.colour})`);
    drawn.setAttribute('d', path);
    svg.append(drawn);
  }
  box.append(title, svg);
  return box;
}

function draw(now) {
  const gateway = now.functions.find(each => each.kind === 'gateway');
  const traffic = gateway ? gateway.rps : 0, latency = gateway ? gateway.p95_ms : null;
  at('release').textContent = `${now.target} · release ${now.release.slice(0, 12)} · ${now.url || 'no address'}`;
  for (const [name, value] of [['traffic', traffic], ['latency', latency], ['memory', now.memory_bytes], ['whole', now.model_wise_bytes || null]]) {
    series[name].push(value);
    if (series[name].length > KEEP) series[name].shift();
  }
  changes(now);
  tiles(now, traffic, latency);
  topology(now);
  at('sparks').replaceChildren(
    spark('traffic', value => `${rate(value)} queries/s`, [{ values: series.traffic, colour: 0 }]),
    spark('p95', value => `${+value.toPrecision(3)} ms`, [{ values: series.latency, colour: 1 }]),
    spark('memory', size, [{ values: series.memory, colour: 2 }, { name: 'whole models', values: series.whole, colour: 7, dash: true }]));
}

async function ask() {
  const trouble = at('trouble');
  try {
    const answer = await fetch('/status.json', { cache: 'no-store' });
    const now = await answer.json();
    if (now.error) throw new Error(now.error);
    trouble.hidden = true;
    draw(now);
  } catch (error) {
    trouble.textContent = error instanceof TypeError ? 'erless open has ended: this page stands still' : error.message;
    trouble.hidden = false;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, EVERY_MS);
}

if (known.lines) {
  at('planned').replaceChildren(...known.lines.map(line => make('li', line)));
  at('plan').hidden = false;
}
document.addEventListener('visibilitychange', () => { if (!document.hidden) ask(); });
ask();
