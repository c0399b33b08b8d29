"use strict";
// Pick a trial on the loss-parameter plot and read its curve, its stories and its row. Works in a file opened offline;
// everything is set as text, so that a generated story can never become markup.
(() => {
  const data = JSON.parse(document.getElementById("trials").textContent);
  const section = document.getElementById("explore");
  section.hidden = false;
  const svgSpace = section.querySelector("svg").namespaceURI;
  const plot = section.querySelector(".plot"), detail = section.querySelector(".detail"), filters = section.querySelector(".filters");
  const make = (parent, tag, attributes = {}, text = null, space = null) => {
    const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.appendChild(node);
    return node;
  };
  const names = { params_non_embedding: "non-embedding parameters", params_total: "all parameters", val_loss: "validation loss (nats)", train_loss: "training loss (nats)", lr: "peak learning rate", n_tokens: "characters seen", peak_memory_bytes: "peak memory", wall_s: "seconds" };
  const short = v => { for (const [s, u] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (v >= s) return +(v / s).toPrecision(3) + u; return String(+v.toPrecision(3)); };
  const ticks = (low, high) => {
    for (const mantissas of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
      const found = [];
      for (let d = Math.floor(Math.log10(low)); d <= Math.log10(high); d++) for (const m of mantissas) { const v = m * 10 ** d; if (v >= low && v <= high) found.push(+v.toPrecision(3)); }
      if (found.length >= 4) return found;
    }
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw)), step = power * [1, 2, 2.5, 5, 10].find(m => m * power >= raw);
    return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, k) => +((Math.ceil(low / step) + k) * step).toPrecision(6));
  };
  const axes = (parent, xs, ys, width, height, xLabel, yLabel, label) => {
    const svg = make(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label }, null, svgSpace);
    const wide = values => { const low = Math.min(...values), high = Math.max(...values), room = Math.max(0.06 * Math.log(high / low), 0.02); return [low * Math.exp(-room), high * Math.exp(room)]; };
    const [x0, x1] = wide(xs), [y0, y1] = wide(ys), left = 56, bottom = height - 42;
    const px = v => left + (width - left - 8) * Math.log(v / x0) / Math.log(x1 / x0), py = v => bottom - (bottom - 8) * Math.log(v / y0) / Math.log(y1 / y0);
    make(svg, "path", { d: `M${left} 8V${bottom}H${width - 8}`, fill: "none", class: "axis" }, null, svgSpace);
    for (const v of ticks(x0, x1)) make(svg, "text", { x: px(v), y: bottom + 17, "text-anchor": "middle" }, short(v), svgSpace);
    for (const v of ticks(y0, y1)) make(svg, "text", { x: left - 7, y: py(v) + 4, "text-anchor": "end" }, String(v), svgSpace);
    make(svg, "text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xLabel, svgSpace);
    make(svg, "text", { transform: `translate(11 ${bottom / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel, svgSpace);
    return [svg, px, py];
  };
  const named = data.trials.rows.map(row => Object.fromEntries(data.trials.columns.map((column, i) => [column, row[i]])));
  const trials = named.filter(t => t.val_loss > 0 && t.params_non_embedding > 0);
  if (!trials.length) { section.hidden = true; return; }
  const [svg, px, py] = axes(plot, trials.map(t => t.params_non_embedding), trials.map(t => t.val_loss), 440, 350, "non-embedding parameters", "validation loss (nats per character)", "Trials: loss against parameters");
  const points = trials.map((t, i) => {
    const name = `${t.n_layer} layers, width ${t.n_embd}, ${t.n_head} heads, seed ${t.seed}: loss ${t.val_loss.toFixed(3)}`;
    const point = make(svg, "circle", { cx: px(t.params_non_embedding), cy: py(t.val_loss), r: 6, class: "point", tabindex: i ? -1 : 0, role: "button", "aria-label": name }, null, svgSpace);
    make(point, "title", {}, name, svgSpace);
    point.addEventListener("click", () => show(i));
    point.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) { event.preventDefault(); move(i, step); }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); show(i); }
    });
    return point;
  });
  const move = (i, step) => {
    for (let k = 1; k <= trials.length; k++) {
      const j = (i + step * k + k * trials.length) % trials.length;
      if (!points[j].classList.contains("off")) { points[j].focus(); show(j); return; }
    }
  };
  const show = i => {
    const t = trials[i];
    points.forEach((p, j) => { p.classList.toggle("on", i === j); p.setAttribute("tabindex", i === j ? 0 : -1); });
    detail.replaceChildren();
    make(detail, "h3", {}, `${t.n_layer} × ${t.n_embd}, ${t.n_head} head${t.n_head === 1 ? "" : "s"}, seed ${t.seed}`);
    const list = make(detail, "dl");
    for (const [key, value] of Object.entries(t)) {
      if (value === null || ["n_layer", "n_embd", "n_head", "seed"].includes(key)) continue;
      make(list, "dt", {}, names[key] || key.replaceAll("_", " "));
      make(list, "dd", {}, key.endsWith("_bytes") ? `${Math.round(value / 2 ** 20).toLocaleString("en-US")} MiB` : typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en-US") : String(+value.toPrecision(4))) : String(value));
    }
    const curve = data.curves[t.trial_id] || [];
    if (curve.length > 1) {
      const [drawn, cx, cy] = axes(detail, curve.map(p => p[0]), curve.map(p => p[1]), 440, 250, "training characters seen", "validation loss", "Learning curve of this trial");
      make(drawn, "path", { class: "curve", d: curve.map((p, k) => `${k ? "L" : "M"}${cx(p[0]).toFixed(1)} ${cy(p[1]).toFixed(1)}`).join("") }, null, svgSpace);
    }
    for (const [prompt, temperature, text] of data.stories[t.trial_id] || []) {
      make(detail, "h4", {}, `Story at temperature ${temperature}, prompt in gray`);
      const story = make(detail, "pre", { class: "story" });
      make(story, "span", { class: "prompt" }, prompt);
      story.append(text);
    }
  };
  const chosen = {};
  for (const [key, label] of [["n_layer", "layers"], ["n_embd", "width"], ["n_head", "heads"]]) {
    const values = [...new Set(trials.map(t => t[key]))].sort((a, b) => a - b);
    const select = make(make(filters, "label", {}, label), "select", { name: key });
    for (const value of ["all", ...values]) make(select, "option", { value }, String(value));
    select.addEventListener("change", () => {
      chosen[key] = select.value;
      points.forEach((p, i) => p.classList.toggle("off", Object.entries(chosen).some(([k, v]) => v !== "all" && String(trials[i][k]) !== v)));
    });
  }
  filters.addEventListener("submit", event => event.preventDefault());
  show(trials.reduce((best, t, i) => t.val_loss < trials[best].val_loss ? i : best, 0));
})();
