// The crosshair: the nearest point of each series under the pointer.
for (const plot of document.querySelectorAll('.plot')) {
  const data = JSON.parse(plot.querySelector('script').textContent);
  const tip = plot.querySelector('.tip');
  for (const svg of plot.querySelectorAll('svg')) {
    const cross = svg.querySelector('.cross'), own = svg.dataset;
    const left = +own.left, width = +own.width, low = +own.low, high = +own.high;
    const hide = () => { tip.hidden = true; cross.style.visibility = 'hidden'; };
    svg.addEventListener('pointerleave', hide);
    svg.addEventListener('pointermove', event => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const part = ((event.clientX - box.left) * scale - left) / width;
      if (part < 0 || part > 1) { hide(); return; }
      const at = own.log === '1' ? low * (high / low) ** part : low + (high - low) * part;
      tip.textContent = '';
      const head = document.createElement('div');
      tip.append(head);
      let shown = at;
      for (const series of data.series) {
        let best = 0;
        for (let i = 1; i < series.x.length; i++)
          if (Math.abs(series.x[i] - at) < Math.abs(series.x[best] - at)) best = i;
        if (series.text[best] === null) continue;
        shown = series.x[best];
        const row = document.createElement('div'), dot = document.createElement('i');
        dot.style.background = `var(--c${series.colour})`;
        row.append(dot, `${series.name}: ${series.text[best]}`);
        tip.append(row);
      }
      head.textContent = `${data.x}: ${(+shown.toPrecision(4)).toLocaleString('en')}`;
      const x = left + width * part;
      cross.setAttribute('x1', x); cross.setAttribute('x2', x);
      cross.style.visibility = 'visible';
      tip.hidden = false;
      const place = x / scale, room = box.width - tip.offsetWidth - 4;
      tip.style.left = `${Math.max(0, Math.min(place + 12, room))}px`;
    });
  }
}
