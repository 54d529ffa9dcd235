// The picture of what was used.
"use strict";

const COLOURS = ["--rest", "--queue", "--good", "--first", "--bad", "--muted", "--ink", "--line"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function shown(value, show) {
  if (value == null) return "\u2013";
  if (show === "first" || show === "total") return `${value.toFixed(2)} s`;
  return show === "cost" ? value.toFixed(4) : Math.round(value).toLocaleString("en");
}

async function draw() {
  const place = document.getElementById("chart");
  const answer = await fetch(place.dataset.source, { headers: { accept: "application/json" } });
  if (!answer.ok) { place.textContent = await answer.text(); return; }
  const told = await answer.json();
  if (!told.names.length) return;
  const two = (value) => String(value).padStart(2, "0");
  const when = (at) => {
    const date = new Date(at * 1000);
    const day = `${two(date.getUTCMonth() + 1)}-${two(date.getUTCDate())}`;
    return date.getUTCHours() ? `${two(date.getUTCHours())}:00` : day;
  };
  const whole = told.show === "tokens" || told.show === "requests" || told.show === "errors";
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const series = told.names.map((name, at) => ({
    label: name, stroke: colour(COLOURS[at % COLOURS.length]), width: 2, spanGaps: false,
    points: { size: 5 }, value: (_, value) => shown(value, told.show),
  }));
  const options = {
    width: place.clientWidth, height: 280, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
    scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, values: (_, values) => values.map(when), incrs: [3600, 7200, 14400, 43200, 86400, 604800, 1209600] },
      { ...axis, size: 80, values: (_, values) => values.map((one) => (whole && one % 1 ? "" : shown(one, told.show))) },
    ],
    series: [{ label: "UTC", value: (_, at) => (at == null ? "\u2013" : new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ")) }, ...series],
  };
  const plot = new uPlot(options, [told.times, ...told.lines], place);
  addEventListener("resize", () => plot.setSize({ width: place.clientWidth, height: 280 }));
}

draw();
