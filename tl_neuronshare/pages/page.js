"use strict";
// Draws each table of the page. Texts of the data go into the page as text only (textContent), never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colours = data.colours;
  const LEVELS = [["mismatched", "with different examples", "dash"], ["independent", "if independent", "dot"]];

  const add = (parent, tag, text = "", name = "") => {
    const element = document.createElement(tag);
    if (text !== "") element.textContent = text;
    if (name) element.className = name;
    parent.append(element);
    return element;
  };
  const unique = (values) => [...new Set(values)];
  const rowsOf = (columns) => {
    const names = Object.keys(columns);
    return columns[names[0]].map((_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
  };
  // Plotly reads <b> and <br> in texts as markup.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const shown = (value) => (value === null ? "" : typeof value === "number" ? String(+value.toPrecision(4)) : String(value));

  // A choice among some values; `draw` is called now and after every change.
  const choice = (parent, name, values, chosen = values[0]) => {
    const label = add(parent, "label", name);
    const select = add(label, "select");
    select.name = name;
    for (const value of values) {
      const option = add(select, "option", String(value));
      option.value = String(value);
    }
    select.value = String(chosen);
    return select;
  };
  const redrawn = (selects, draw) => {
    for (const select of selects) select.addEventListener("change", draw);
    draw();
  };
  // Layers are whole numbers, of which about a dozen are written.
  const whole = (traces) => ({
    dtick: Math.max(1, Math.ceil(Math.max(0, ...traces.flatMap((trace) => trace.x)) / 12)),
    tick0: 0,
    zeroline: false,
  });
  const figure = (chart, traces, x, y, more = {}) =>
    Plotly.react(
      chart,
      traces,
      {
        margin: { l: 60, r: 10, t: 35, b: 45 }, // room for the buttons above
        xaxis: { title: { text: plain(x) }, ...(x === "layer" ? whole(traces) : {}) },
        yaxis: { title: { text: plain(y) }, rangemode: "tozero" },
        legend: { orientation: "h", y: -0.2 },
        hovermode: more.hovermode || "x unified",
        hoverdistance: more.hovermode ? 20 : -1, // with layers far apart, the nearest one is meant
        barmode: "group",
      },
      { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] },
    );
  const line = (rows, column, name, index, dash = "solid", extra = {}) => ({
    type: "scatter",
    mode: "lines+markers",
    x: rows.map((row) => row.layer),
    y: rows.map((row) => row[column]),
    name: plain(name),
    line: { color: colours[index % colours.length], dash },
    hovertemplate: "%{y:.2f}",
    ...extra,
  });

  const draw = {
    types(section, rows) {
      const type = choice(section, "type", data.types.filter((each) => rows.some((row) => row.type === each)), "all-shared");
      const shares = "share, beside chance";
      const measure = choice(section, "measure", "excess" in rows[0] ? [shares, "excess over different examples"] : [shares]);
      const chart = add(section, "div", "", "chart");
      redrawn([type, measure], () => {
        const of = rows.filter((row) => row.type === type.value);
        if (measure.value !== shares) {
          const reach = (end) => of.map((row) => (row[end] === null ? null : Math.abs(row[end] - row.excess)));
          const ends = { array: reach("excess_high"), arrayminus: reach("excess_low") };
          const more = { error_y: { symmetric: false, ...ends }, hovertemplate: "%{y:.2f} points" };
          figure(chart, [line(of, "excess", "excess, with its 95 % interval", 0, "solid", more)], "layer", "excess (points of the layer)");
          return;
        }
        const excess = of.map((row) => [row.excess, row.excess_low, row.excess_high].map(shown));
        const said = "%{y:.2f} %<br>excess %{customdata[0]} [%{customdata[1]}, %{customdata[2]}]";
        figure(
          chart,
          [
            line(of, "mean", "measured", 0, "solid", "excess" in of[0] ? { customdata: excess, hovertemplate: said } : {}),
            ...LEVELS.map(([column, name, dash], index) => line(of, column, name, index + 1, dash)),
          ],
          "layer",
          "neurons (% of the layer)",
        );
      });
    },
    languages(section, rows) {
      draw.byLanguage(section, rows, "mean", "activated neurons (% of the layer)");
    },
    rates(section, rows) {
      draw.byLanguage(section, rows, "rate", "tokens that activate a neuron (%)");
    },
    byLanguage(section, rows, column, name) {
      const chart = add(section, "div", "", "chart");
      const languages = unique(rows.map((row) => row.language));
      const of = (language) => rows.filter((row) => row.language === language);
      figure(chart, languages.map((language, index) => line(of(language), column, language, index)), "layer", name);
    },
    overlap(section, rows) {
      const languages = unique(rows.flatMap((row) => [row.language, row.other]));
      const first = choice(section, "language", languages);
      const second = choice(section, "and language", languages, languages[1]);
      const note = add(section, "p", "", "note");
      const chart = add(section, "div", "", "chart");
      redrawn([first, second], () => {
        const pair = [first.value, second.value];
        const of = rows.filter((row) => pair.includes(row.language) && pair.includes(row.other) && row.layer !== "all");
        note.textContent = pair[0] === pair[1] ? "Choose two different languages." : "";
        const layers = of.map((row) => ({ ...row, layer: Number(row.layer) }));
        figure(
          chart,
          [line(layers, "jaccard", "the same example", 0), ...LEVELS.map(([column, name, dash], index) => line(layers, column, name, index + 1, dash))],
          "layer",
          "Jaccard index of activated neurons",
        );
      });
    },
    study(section, rows) {
      const metric = choice(section, "measure", unique(rows.map((row) => row.metric)));
      const language = choice(section, "in", unique(rows.map((row) => row.language)), "all");
      const chart = add(section, "div", "", "chart");
      redrawn([metric, language], () => {
        const of = rows.filter((row) => row.metric === metric.value && row.language === language.value && row.type !== "none");
        const kinds = unique(of.map((row) => row.ablated));
        const traces = kinds.map((kind, index) => {
          const here = of.filter((row) => row.ablated === kind);
          const to = (column, sign) => here.map((row) => (row[column] === null ? 0 : sign * (row[column] - row.difference)));
          return {
            type: "bar",
            name: kind === "type" ? "the neurons themselves" : `control: ${plain(kind)}`,
            x: here.map((row) => plain(row.type)),
            y: here.map((row) => row.difference),
            error_y: { type: "data", symmetric: false, array: to("high", 1), arrayminus: to("low", -1), thickness: 1, width: 2 },
            marker: { color: colours[index % colours.length] },
            customdata: here.map((row) => [row.low, row.high, row.neurons].map(shown)),
            hovertemplate: "%{y:.3f} [%{customdata[0]}, %{customdata[1]}], %{customdata[2]} neurons a layer",
          };
        });
        figure(chart, traces, "ablated", `change of ${metric.value.replaceAll("_", " ")}`, { hovermode: "closest" });
      });
    },
    neurons(section, rows) {
      const layers = unique(rows.map((row) => row.layer)).sort((a, b) => a - b);
      const byLayer = new Map(layers.map((layer) => [String(layer), rows.filter((row) => row.layer === layer)]));
      const layer = choice(section, "layer", layers);
      const neuron = choice(section, "neuron", [""]);
      const panel = add(section, "div");
      const rates = Object.keys(rows[0]).filter((name) => name.startsWith("rate "));
      const show = () => {
        const row = byLayer.get(layer.value).find((each) => String(each.neuron) === neuron.value);
        panel.replaceChildren();
        for (const [name, what] of [["promotes", "Tokens that it promotes"], ["suppresses", "Tokens that it suppresses"]]) {
          const line = add(panel, "p", `${what}: `);
          for (const token of row[name]) add(line, "span", token, "chip");
        }
        const types = data.types.filter((type) => type in row);
        if (types.length) {
          const table = add(panel, "table");
          const head = add(table, "tr");
          const body = add(table, "tr");
          add(head, "th", "type");
          add(body, "th", "examples");
          for (const type of types) {
            add(head, "th", type);
            add(body, "td", shown(row[type]), "number");
          }
        }
        if (rates.length) {
          const chart = add(panel, "div", "", "chart");
          const bars = { type: "bar", x: rates.map((name) => plain(name.slice(5))), y: rates.map((name) => row[name]), marker: { color: colours[0] }, hovertemplate: "%{y:.1f} %" };
          figure(chart, [bars], "language", "how often it is activated (%)");
        }
        if (row.prompts) {
          add(panel, "p", "Prompts that activate it most, with its value at each token where that is known:", "note");
          row.prompts.forEach(([language, text, value], number) => {
            const line = add(panel, "p", "", "prompt");
            add(line, "b", `${language}, ${shown(value)}`);
            const tokens = row.tokens ? row.tokens[number] : [[text, null]];
            const most = Math.max(1e-9, ...tokens.map(([, each]) => Math.abs(each || 0)));
            for (const [token, each] of tokens) {
              const span = add(line, "span", token, "token");
              if (each === null) continue;
              span.title = shown(each);
              const strength = Math.abs(each) / most;
              span.style.background = each > 0 ? `rgba(0, 114, 178, ${0.6 * strength})` : `rgba(230, 159, 0, ${0.6 * strength})`;
            }
          });
        }
      };
      const fill = () => {
        neuron.replaceChildren();
        for (const row of byLayer.get(layer.value)) {
          const option = add(neuron, "option", String(row.neuron));
          option.value = String(row.neuron);
        }
        show();
      };
      layer.addEventListener("change", fill);
      neuron.addEventListener("change", show);
      fill();
    },
    table(section, rows, part) {
      if (part.rows > rows.length) add(section, "p", `The first ${rows.length} of ${part.rows} rows.`, "note");
      const table = add(add(section, "div", "", "scroll"), "table");
      const head = add(add(table, "thead"), "tr");
      const body = add(table, "tbody");
      const names = Object.keys(part.columns);
      let order = rows;
      const fill = () => {
        body.replaceChildren();
        for (const row of order) {
          const line = add(body, "tr");
          for (const name of names) add(line, "td", shown(row[name]), typeof row[name] === "number" ? "number" : "");
        }
      };
      for (const name of names) {
        let sign = 1;
        add(add(head, "th"), "button", name).addEventListener("click", () => {
          const compared = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
          order = [...rows].sort((a, b) => sign * compared(a[name], b[name]));
          sign = -sign;
          fill();
        });
      }
      fill();
    },
  };

  const HEADINGS = {
    types: "Types by layer",
    languages: "Activated neurons by language",
    rates: "Rates by language",
    overlap: "Two languages",
    study: "Without the neurons of a type, and without as many others",
    neurons: "Neurons, one by one",
    table: "Table",
  };
  for (const part of data.parts) {
    const section = add(document.getElementById("parts"), "section");
    section.dataset.kind = part.kind;
    add(section, "h2", part.heading || HEADINGS[part.kind]);
    if (part.note) add(section, "p", part.note, "note");
    draw[part.kind](section, rowsOf(part.columns), part);
  }
})();
