/* The interactive figure: curves that can be pointed at, walked along with the keyboard, and switched off and on.
   It is drawn for the width that there is, so that its text has the same size on a phone. */
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const ROOM = { left: 54, right: 14, top: 12, bottom: 44 };
  const [ACCURACY, LOW, HIGH, TEXT, COSTS] = [0, 1, 2, 3, 4]; // places in a point; costs go on from there
  const REACH = 26; // pixels around a point in which a pointer finds it

  function make(name, attributes = {}, parent = null) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent?.append(element);
    return element;
  }

  function html(name, properties = {}, parent = null) {
    const element = Object.assign(document.createElement(name), properties);
    parent?.append(element);
    return element;
  }

  /* 1, 2, 5 steps of a logarithmic axis, finer where it is short. */
  function logTicks(low, high, most) {
    for (const digits of [[1, 1.5, 2, 3, 4, 5, 7], [1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
        for (const d of digits) {
          const value = d * 10 ** e;
          if (value >= low && value <= high) found.push(value);
        }
      }
      if (found.length <= most) return found;
    }
    return [low, high];
  }

  function percentTicks(low, high, most) {
    const step = [0.005, 0.01, 0.02, 0.025, 0.05, 0.1, 0.2, 0.25].find((s) => (high - low) / s <= most) ?? 0.5;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= Math.min(high, 1) + 1e-9; i++) found.push(i * step);
    return found.filter((value) => value > -1e-9);
  }

  const shortNumber = (value) =>
    value >= 1 ? Math.round(value * 100) / 100 >= 1000 ? value.toLocaleString("en") : `${+value.toPrecision(3)}` : `${+value.toPrecision(2)}`;

  function signOf(policy) {
    const svg = make("svg", { class: "sign", viewBox: "-15 -7 30 14", "aria-hidden": "true" });
    const line = make("path", { d: "M-15 0H15", "stroke-dasharray": policy.dashes || "none" }, svg);
    line.style.stroke = policy.color;
    const mark = make("path", { d: policy.shape, transform: "scale(9)", class: policy.hollow ? "hollow" : "full" }, svg);
    mark.style[policy.hollow ? "stroke" : "fill"] = policy.color;
    return svg;
  }

  function build(box) {
    const data = JSON.parse(document.getElementById(box.dataset.curves).textContent);
    if (!data.policies.length) return; // nothing is graded
    const switches = html("div", { className: "switches" }, box);
    const plot = html("div", { className: "plot" }, box);
    const svg = make("svg", { role: "group", "aria-label": `${data.title}: curves` }, plot);
    const tip = html("div", { className: "tip", hidden: true }, plot);
    tip.setAttribute("aria-hidden", "true"); // a curve's own text says the same
    const back = make("g", {}, svg);
    const front = make("path", { class: "front" }, svg);
    const level = make("path", { class: "level" }, svg);
    const layer = make("g", {}, svg);
    const cursor = make("circle", { class: "cursor", r: 8, visibility: "hidden" }, svg);
    let cost = 0;
    let scale = null;
    let held = null; // the curve and place that are shown: { policy, place }

    /* Points in order of tokens, the operating point among them. */
    const curves = data.policies.map((policy) => {
      const points = policy.points.map((point, i) => ({ point, main: policy.marked[i] ?? false }));
      if (policy.at) points.push({ point: policy.at, main: true });
      points.sort((a, b) => a.point[COSTS] - b.point[COSTS]);
      const start = points.findIndex(({ point }) => point === policy.at);
      const group = make("g", { class: policy.marked.length ? "curve marked" : "curve", role: "slider", tabindex: "0", "aria-label": policy.name }, layer);
      group.setAttribute("aria-valuemin", "1");
      group.setAttribute("aria-valuemax", `${points.length}`);
      const curve = {
        policy, points, group, visible: true,
        place: start < 0 ? points.length - 1 : start,
        home: start < 0 ? points.length - 1 : start,
        band: make("path", { class: "band" }, group),
        line: make("path", { class: "line", "stroke-dasharray": policy.dashes || "none" }, group),
        marks: points.map(({ main }) => {
          if (!main) return null;
          const whisker = make("path", { class: "whisker" }, group);
          const mark = make("path", { d: policy.shape, class: policy.hollow ? "mark hollow" : "mark" }, group);
          whisker.style.stroke = policy.color;
          mark.style[policy.hollow ? "stroke" : "fill"] = policy.color;
          return { whisker, mark };
        }),
      };
      curve.band.style.fill = policy.color;
      curve.line.style.stroke = policy.color;
      say(curve);
      group.addEventListener("focus", () => show(curve, curve.place));
      group.addEventListener("blur", hide);
      group.addEventListener("keydown", (event) => onKey(event, curve));
      return curve;
    });

    function say(curve) {
      curve.group.setAttribute("aria-valuenow", `${curve.place + 1}`);
      curve.group.setAttribute("aria-valuetext", curve.points[curve.place].point[TEXT].filter(Boolean).join("; "));
    }

    function onKey(event, curve) {
      const last = curve.points.length - 1;
      const places = {
        ArrowRight: curve.place + 1, ArrowUp: curve.place + 1, ArrowLeft: curve.place - 1, ArrowDown: curve.place - 1,
        PageUp: curve.place + 10, PageDown: curve.place - 10, Home: 0, End: last, Enter: curve.home, " ": curve.home,
      };
      if (event.key === "Escape") hide();
      if (!(event.key in places)) return;
      event.preventDefault();
      show(curve, Math.min(Math.max(places[event.key], 0), last));
    }

    function show(curve, place) {
      curve.place = place;
      say(curve);
      held = { curve, place };
      for (const other of curves) other.group.classList.toggle("active", other === curve);
      layer.classList.add("dim");
      const { point } = curve.points[place];
      const x = scale.x(point[COSTS + cost]);
      const y = scale.y(point[ACCURACY]);
      cursor.setAttribute("cx", x);
      cursor.setAttribute("cy", y);
      cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(html("b", { textContent: curve.policy.name }));
      for (const line of point[TEXT]) if (line) html("span", { textContent: line }, tip);
      tip.hidden = false;
      // Beside the point where there is room, else above or below it, and never outside the figure.
      const { width, height } = scale;
      const [w, h] = [tip.offsetWidth, tip.offsetHeight];
      const left = x + 16 + w < width ? x + 16 : x - 16 - w > 0 ? x - 16 - w : Math.max(0, (width - w) / 2);
      const beside = left > x || left + w < x;
      const top = beside ? y - h / 2 : y > h + 18 ? y - h - 16 : y + 16;
      tip.style.left = `${left}px`;
      tip.style.top = `${Math.min(Math.max(top, 0), Math.max(0, height - h))}px`;
    }

    function hide() {
      held = null;
      tip.hidden = true;
      cursor.setAttribute("visibility", "hidden");
      layer.classList.remove("dim");
      for (const curve of curves) curve.group.classList.remove("active");
    }

    /* Pointing shows the nearest point; leaving goes back to the curve that has the focus. */
    function point(event) {
      const frame = svg.getBoundingClientRect();
      const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
      let best = null;
      for (const curve of curves) {
        if (!curve.visible) continue;
        curve.points.forEach(({ point: p, main }, place) => {
          const distance = Math.hypot(scale.x(p[COSTS + cost]) - px, scale.y(p[ACCURACY]) - py) - (main ? 5 : 0);
          if (distance < REACH && (!best || distance < best.distance)) best = { curve, place, distance };
        });
      }
      if (best) show(best.curve, best.place);
      else leave();
    }
    function leave() {
      const focused = curves.find(({ group }) => group === document.activeElement);
      if (focused) show(focused, focused.place);
      else hide();
    }
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("mousedown", (event) => event.preventDefault()); // or the curve on top would get the focus
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());

    function layout() {
      const width = plot.clientWidth;
      if (!width) return;
      const height = Math.round(Math.min(Math.max(0.56 * width, 320), 560));
      const shown = curves.filter((curve) => curve.visible);
      const all = (shown.length ? shown : curves).flatMap((curve) => curve.points.map((entry) => entry.point));
      const xs = all.map((p) => p[COSTS + cost]);
      const [x0, x1] = [Math.min(...xs) / 1.15, Math.max(...xs) * 1.15];
      let [y0, y1] = [Math.min(...all.map((p) => p[LOW])), Math.max(...all.map((p) => p[HIGH]))];
      const room = Math.max(0.05 * (y1 - y0), 0.005);
      [y0, y1] = [Math.max(y0 - room, -room), Math.min(y1 + room, 1 + room)];
      const right = width - ROOM.right;
      const bottom = height - ROOM.bottom;
      const ratio = (right - ROOM.left) / Math.log(x1 / x0);
      scale = {
        width, height,
        x: (value) => ROOM.left + Math.log(value / x0) * ratio,
        y: (value) => bottom - ((value - y0) / (y1 - y0)) * (bottom - ROOM.top),
      };
      const X = (value) => scale.x(value).toFixed(1);
      const Y = (value) => scale.y(value).toFixed(1);
      const path = (points, value) => points.map((p, i) => `${i ? "L" : "M"}${X(p[COSTS + cost])} ${Y(value(p))}`).join("");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("height", height);

      back.replaceChildren();
      for (const value of logTicks(x0, x1, Math.max(3, width / 75))) {
        make("path", { class: "grid", d: `M${X(value)} ${ROOM.top}V${bottom}` }, back);
        make("text", { x: X(value), y: bottom + 18, "text-anchor": "middle" }, back).textContent = shortNumber(value);
      }
      for (const value of percentTicks(y0, y1, height / 42)) {
        make("path", { class: "grid", d: `M${ROOM.left} ${Y(value)}H${right}` }, back);
        const label = make("text", { x: ROOM.left - 6, y: +Y(value) + 4, "text-anchor": "end" }, back);
        label.textContent = `${+(100 * value).toFixed(1)} %`;
      }
      make("path", { class: "axis", d: `M${ROOM.left} ${bottom}H${right}` }, back);
      const title = make("text", { x: (ROOM.left + right) / 2, y: height - 6, "text-anchor": "middle" }, back);
      title.textContent = width < 480 ? data.costs[cost].axis.split(",")[0] : data.costs[cost].axis;

      const inside = data.fronts[cost].filter(([x, y]) => x >= x0 && x <= x1 && y >= y0 && y <= y1);
      front.setAttribute("d", inside.map(([x, y], i) => `${i ? "L" : "M"}${X(x)} ${Y(y)}`).join(""));
      const inLevel = data.level !== null && data.level >= y0 && data.level <= y1;
      if (inLevel) level.setAttribute("d", `M${ROOM.left} ${Y(data.level)}H${right}`);
      level.setAttribute("visibility", inLevel ? "visible" : "hidden");

      for (const curve of curves) {
        curve.group.style.display = curve.visible ? "" : "none";
        if (!curve.visible) continue;
        const points = curve.policy.points;
        // Between two points a curve is a mixture of both: straight in cost, so bent on the logarithmic axis.
        const ends = points.map((p) => [p[COSTS + cost], p[ACCURACY]]);
        const bent = ends.flatMap(([x, y], i) => !i ? [[x, y]] : Array.from({ length: 12 }, (_, step) => {
          const [w, [a, b]] = [(step + 1) / 12, ends[i - 1]];
          return [a + w * (x - a), b + w * (y - b)];
        }));
        curve.line.setAttribute("d", bent.map(([x, y], i) => `${i ? "L" : "M"}${X(x)} ${Y(y)}`).join(""));
        const under = [...points].reverse().map((p) => `L${X(p[COSTS + cost])} ${Y(p[LOW])}`).join("");
        if (points.length) curve.band.setAttribute("d", `${path(points, (p) => p[HIGH])}${under}Z`);
        curve.points.forEach(({ point: p }, i) => {
          if (!curve.marks[i]) return;
          curve.marks[i].whisker.setAttribute("d", `M${X(p[COSTS + cost])} ${Y(p[LOW])}V${Y(p[HIGH])}`);
          const size = p === curve.policy.at || points.length === 1 ? 12 : 9;
          curve.marks[i].mark.setAttribute("transform", `translate(${X(p[COSTS + cost])} ${Y(p[ACCURACY])}) scale(${size})`);
        });
      }
      if (held && held.curve.visible) show(held.curve, held.place);
      else hide();
    }

    if (data.costs.length > 1) {
      html("span", { textContent: "Cost" }, switches);
      const buttons = data.costs.map(({ name }, i) => {
        const button = html("button", { type: "button", textContent: name }, switches);
        button.setAttribute("aria-pressed", `${i === cost}`);
        button.addEventListener("click", () => {
          cost = i;
          buttons.forEach((other, j) => other.setAttribute("aria-pressed", `${j === cost}`));
          layout();
        });
        return button;
      });
    }

    /* Ladders may cost very different amounts, so that each alone shows more. */
    const isOther = ({ policy }) => policy.series !== data.main;
    const choices = { all: () => true, [data.main]: (curve) => !isOther(curve), others: isOther };
    const decides = ({ policy }) => policy.decides; // what the figure begins with: the curves of the static one
    if (!curves.every(decides)) choices["what decides"] = decides;
    if (curves.some(isOther)) {
      const presets = html("div", { className: "presets" }, box);
      html("span", { textContent: "Show" }, presets);
      for (const [name, chosen] of Object.entries(choices)) {
        const button = html("button", { type: "button", textContent: name }, presets);
        button.addEventListener("click", () => {
          for (const curve of curves) setVisible(curve, chosen(curve));
          layout();
        });
      }
    }
    function setVisible(curve, visible) {
      curve.visible = visible;
      curve.button.setAttribute("aria-pressed", `${visible}`);
    }

    const legend = html("div", { className: "legend" }, box);
    for (const [group, heading] of Object.entries(data.groups)) {
      const members = curves.filter(({ policy }) => policy.group === group);
      if (!members.length) continue;
      const list = html("div", {}, legend);
      html("h3", { textContent: heading }, list);
      for (const curve of members) {
        const button = html("button", { type: "button" }, list);
        button.append(signOf(curve.policy), curve.policy.name);
        curve.button = button;
        setVisible(curve, decides(curve));
        button.addEventListener("click", () => {
          setVisible(curve, !curve.visible);
          layout();
        });
      }
    }

    box.hidden = false;
    box.closest("figure").classList.add("is-live");
    new ResizeObserver(layout).observe(plot);
    layout();
  }

  for (const box of document.querySelectorAll("[data-curves]")) build(box);
})();
