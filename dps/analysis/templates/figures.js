/* The figures: Vega-Lite draws what the page's JSON holds. Colours are variables of the page's style, so that light,
   dark and print need no drawing again; only a PNG has them resolved. */
(() => {
  "use strict";
  /* Of the nearest point Vega-Lite tells the numbers, but looks for the words in the cell that has the point as datum. */
  function patch(compiled) {
    for (const { encode } of compiled.marks) {
      const tip = encode?.update?.isVoronoi && encode.update.tooltip;
      if (tip) tip.signal = tip.signal.replace(/(?<!datum\.)datum\[/g, "datum.datum[");
    }
    return compiled;
  }
  const tooltip = { theme: "page", disableDefaultStyle: true };
  const OPTIONS = { ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip, patch };
  const CONFIG = {
    aria: false, background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: {
      labelColor: "var(--muted)", titleColor: "var(--ink)", gridColor: "var(--grid)", domainColor: "var(--muted)",
      tickColor: "var(--muted)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", tickCount: 6,
    },
    legend: { labelColor: "var(--ink)", labelFontSize: 12, labelLimit: 300 },
  };
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const html = (name, properties, parent) => {
    const element = Object.assign(document.createElement(name), properties);
    parent.append(element);
    return element;
  };
  async function embed(box, spec) {
    const sized = { width: "container", autosize: { type: "fit-x", contains: "padding" }, ...spec, config: CONFIG };
    const { view } = await vegaEmbed(box, sized, OPTIONS);
    box.querySelector("svg").ariaHidden = "true"; // the box has a label, and the table beside it the numbers
    return view;
  }

  async function savePng(box, spec, name) {
    const probe = html("i", {}, document.body);
    const resolved = JSON.stringify({ ...spec, width: Math.max(box.clientWidth, 640), config: { ...CONFIG, background: "var(--surface)" } })
      .replace(/var\(--[\w-]+\)/g, (color) => {
        probe.style.color = color;
        return getComputedStyle(probe).color;
      });
    probe.remove();
    const { view } = await vegaEmbed(document.createElement("div"), JSON.parse(resolved), OPTIONS);
    saveAs(await view.toImageURL("png", 2), `${name}.png`);
  }

  /* Buttons for PNG and CSV, and a table that is made when it is opened: rows are objects with the same keys. */
  function alternatives(box, name, specs, rows) {
    const bar = html("div", { className: "save" }, box.parentElement);
    box.after(bar);
    html("button", { type: "button", textContent: "PNG" }, bar).onclick = () =>
      specs().forEach(([of, spec], i) => savePng(of, spec, i ? `${name}-${i + 1}` : name));
    html("button", { type: "button", textContent: "CSV" }, bar).onclick = () => saveCsv(rows(), name);
  }

  function tabulate(details, rows) {
    details.hidden = false;
    const fill = () => {
      details.querySelector(".scroll")?.remove();
      if (!details.open) return;
      const found = rows();
      const table = tableOf(found);
      const scroll = html("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "The figure as a table" }, details);
      scroll.append(table);
      makeSortable(table);
    };
    details.addEventListener("toggle", fill);
    return fill;
  }

  for (const box of document.querySelectorAll("[data-chart]")) {
    const spec = read(box.dataset.chart);
    const rows = () => spec.data.values;
    embed(box, spec);
    alternatives(box, box.dataset.chart, () => [[box, spec]], rows);
    tabulate(box.parentElement.querySelector(".alternative"), rows);
  }

  /* -- accuracy against costs: what the controls choose is drawn anew */
  const root = document.querySelector("[data-curves]");
  const data = read("curves");
  if (!data.points.length) return; // nothing is graded
  const find = (selector) => [...root.querySelectorAll(selector)];
  const charts = find(".chart");
  const policies = find(".legend label");
  const chosen = root.querySelector("select");
  const same = (field, more) => ({ field, type: "nominal", scale: null, legend: null, ...more });
  let domains = null; // of each run; null is everything that is shown
  let views = [];
  let specs = [];

  const axis = () => data.costs[root.querySelector("[name=cost]:checked").value];
  const along = ({ of, per }, value) => (per ? per / value : value);
  const visible = () => {
    const families = new Set(find("[data-group]:checked").map((input) => input.dataset.group));
    const inSet = ({ dataset }) =>
      chosen.value === "" || (chosen.value === "decides" ? "decides" in dataset : dataset.series === chosen.value);
    const shown = new Set();
    for (const label of policies) {
      label.hidden = !(families.has(label.dataset.of) && inSet(label));
      if (!label.hidden && label.firstElementChild.checked) shown.add(label.firstElementChild.value);
    }
    return shown;
  };
  const points = (shown) => data.points.filter(({ policy }) => shown.has(policy));

  /* Between two points a curve is a mixture of both: straight in cost, so bent on a logarithmic axis. */
  function bent(curve, cost) {
    return curve.flatMap((to, i) => {
      const from = curve[i - 1] ?? to;
      return Array.from({ length: i ? 8 : 1 }, (_, step) => {
        const part = i ? (step + 1) / 8 : 1;
        const mix = (key) => from[key] + part * (to[key] - from[key]);
        return { policy: to.policy, x: along(cost, mix(cost.of)), y: mix("accuracy"), ...data.policies[to.policy] };
      });
    });
  }

  function specOf(run, shown, domain) {
    const cost = axis();
    const narrow = charts[0].clientWidth < 500;
    const mine = points(shown).filter((point) => point.run === run.name).map((point) => ({
      ...data.policies[point.policy], ...point, x: along(cost, point[cost.of]),
      says: `${(100 * point.accuracy).toFixed(1)} % [${(100 * point.low).toFixed(1)}, ${(100 * point.high).toFixed(1)}]`,
    }));
    const lines = [...shown].flatMap((name) => bent(mine.filter((point) => point.policy === name && point.on_curve), cost));
    const ends = mine.length ? mine : [{ x: 1, low: 0, high: 1 }];
    const [x, y] = domain ?? [
      [Math.min(...ends.map((p) => p.x)) / 1.1, Math.max(...ends.map((p) => p.x)) * 1.1],
      [Math.min(...ends.map((p) => p.low)) - 0.01, Math.max(...ends.map((p) => p.high)) + 0.01],
    ];
    const marks = mine.filter((point) => point.name !== null);
    const front = run.fronts[cost.of].map(([value, accuracy]) => ({ x: along(cost, value), y: accuracy }));
    const X = { field: "x", type: "quantitative", title: narrow ? cost.axis.split(",")[0] : cost.axis, scale: { type: "log", domain: x, nice: false }, axis: { format: ",~r", labelOverlap: true } };
    const Y = { field: "y", type: "quantitative", title: "accuracy", scale: { domain: y, nice: false, zero: false }, axis: { format: "~%" } };
    const accuracy = { ...Y, field: "accuracy" };
    const words = { policy: "policy", setting: "setting", says: "accuracy [95 %]" };
    const tooltip = [
      ...Object.entries(words).map(([field, title]) => ({ field, title, type: "nominal" })),
      ...data.costs.filter((c) => !c.per).map((c) => ({ field: c.of, title: c.name, type: "quantitative", format: ",.3~r" })),
      { field: "mean_k", title: "mean responses", type: "quantitative", format: ".2f" },
    ];
    const told = run.told?.[cost.of] == null ? [] : [{ x: along(cost, run.told[cost.of]), y: run.told.accuracy }];
    const near = { param: "near", empty: true };
    return {
      height: narrow ? 340 : 440,
      layer: [
        { data: { values: front }, mark: { type: "line", clip: true, strokeWidth: 9, opacity: 0.13, color: "var(--ink)", strokeCap: "round" }, encoding: { x: X, y: Y } },
        { data: { values: run.level === null ? [] : [{ y: run.level }] }, mark: { type: "rule", clip: true, color: "var(--power)", opacity: 0.5 }, encoding: { y: Y } },
        {
          data: { values: lines }, mark: { type: "line", clip: true, strokeWidth: 1.7 },
          encoding: { x: X, y: Y, stroke: same("color"), detail: same("policy"), strokeDash: same("dashes"), opacity: { condition: { ...near, value: 1 }, value: 0.2 } },
        },
        { data: { values: told }, mark: { type: "point", clip: true, size: 700, strokeWidth: 2, color: "var(--ink)" }, encoding: { x: X, y: Y } },
        {
          data: { values: marks }, mark: { type: "rule", clip: true, strokeWidth: 1.2 },
          encoding: { x: X, y: { ...Y, field: "low" }, y2: { field: "high" }, stroke: same("color"), opacity: { condition: { ...near, value: 1 }, value: 0.2 } },
        },
        {
          data: { values: mine.map((p) => ({ ...p, fill: p.name === null ? "transparent" : p.hollow ? "var(--surface)" : p.color, edge: p.name === null ? "transparent" : p.hollow ? p.color : "var(--surface)" })) },
          params: [
            { name: "near", select: { type: "point", fields: ["policy"], nearest: true, on: "pointerover", clear: "pointerout" } },
            {
              name: "move", bind: "scales",
              select: {
                type: "interval", zoom: "wheel![event.ctrlKey || event.metaKey]",
                translate: "[pointerdown[event.pointerType === 'mouse'], window:pointerup] > window:pointermove!",
              },
            },
          ],
          mark: { type: "point", clip: true, size: 420, strokeWidth: 1.2 },
          encoding: { x: X, y: accuracy, fill: same("fill"), stroke: same("edge"), shape: same("shape"), detail: same("policy"), tooltip, opacity: { condition: { ...near, value: 1 }, value: 0.2 } },
        },
      ],
    };
  }

  const rowsOf = () => points(visible()).map(({ on_curve, name, ...point }) => point);
  const fill = tabulate(root.querySelector(".alternative"), rowsOf);

  async function draw() {
    const shown = visible();
    specs = data.runs.map((run, i) => specOf(run, shown, domains?.[i]));
    views = await Promise.all(specs.map((spec, i) => embed(charts[i], spec)));
    fill();
    followFigure(shown);
  }

  const zoom = (times) => {
    const scaled = ([low, high]) => [(low + high - times * (high - low)) / 2, (low + high + times * (high - low)) / 2];
    domains = times && views.map((view) => [scaled(view.scale("x").domain().map(Math.log)).map(Math.exp), scaled(view.scale("y").domain())]);
    if (!times) domains = null;
    draw();
  };
  for (const button of find("[data-zoom]")) button.onclick = () => zoom(Number(button.dataset.zoom));
  root.addEventListener("change", () => {
    domains = null;
    draw();
  });
  root.querySelector(".controls").hidden = root.querySelector(".legend").hidden = false;
  alternatives(root.querySelector(".legend"), "accuracy", () => charts.map((box, i) => [box, specs[i]]), rowsOf);
  draw();
})();
