"use strict";

// A figure is drawn as wide as it was laid out, and scaled down to the window; below this share
// its letters could not be read, and it scrolls.
const LEAST = 0.5;

const find = (id) => document.getElementById(id);

async function inflated(id) {
  const bytes = Uint8Array.from(atob(find(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function fit(width, height) {
  const room = find("room");
  const share = Math.max(LEAST, Math.min(1, room.clientWidth / width));
  find("figure").style = `width: ${width}px; height: ${height}px; transform: scale(${share})`;
  find("frame").style = `width: ${width * share}px; height: ${height * share}px`;
  const wider = Math.floor(width * share) > room.clientWidth;
  find("sideways").hidden = !wider;
  room.tabIndex = wider ? 0 : -1;
}

async function draw() {
  const script = document.createElement("script");
  script.textContent = await inflated("plotly");
  document.head.append(script);
  const { figure, config } = JSON.parse(await inflated("data"));
  const { width, height } = figure.layout;
  fit(width, height);
  await Plotly.newPlot(find("figure"), figure.data, figure.layout, { ...config, responsive: false });
  addEventListener("resize", () => fit(width, height));
}

draw();
