// The page /ui: the server's status, and a place to try the model. It asks /predict as Label Studio does.

const LABEL_CONFIG = `<View><Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="true"><Label value="Object"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Object"/></KeyPointLabels></View>`;
const STATUS_EVERY = 3000; // milliseconds
const STROKE = 10; // pixels of the screen that a stroke is wide
const GREEN = "#18a558", RED = "#e03c3c", MASK = [30, 136, 255, 115], EDGE = [255, 255, 255, 235]; // RGBA

const at = (id) => document.getElementById(id);
const canvas = at("photo");
const base = location.origin + location.pathname; // without a password that may stand in the address

// What is on screen. A mark is a click or a stroke, in pixels of the photo; `start` is the mask that marks correct, as a
// PNG's data URL, or empty; `mask` is a canvas of the photo's size, or null; `path` the stroke that is being drawn.
let photo = null, dataUri = "", marks = [], start = "", mask = null, cross = null, path = null, pending = null;

// --- the server

async function ask(path, body, signal) {
  const options = body ? {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)} : {};
  const response = await fetch(new URL(path, base), {...options, signal});
  const answer = await response.json().catch(() => ({error: `the server answers with status ${response.status}`}));
  if (!response.ok) throw new Error(answer.error);
  return {answer, timing: response.headers.get("Server-Timing") ?? ""};
}

function requestBody(result) {
  return {
    tasks: [{id: null, data: {image: dataUri}}],
    label_config: LABEL_CONFIG,
    project: "ui",
    params: {context: result && {result, ...(start && {start})}},
  };
}

function prompt(mark, number) {
  const width = photo.naturalWidth, height = photo.naturalHeight;
  const item = {
    id: `ui-${number}`,
    to_name: "image",
    original_width: width,
    original_height: height,
    image_rotation: 0,
    is_positive: mark.positive,
  };
  if (mark.path) {
    const value = {format: "rle", rle: encodeRle(painted(mark)), brushlabels: ["Object"]};
    return {...item, type: "brushlabels", from_name: "mask", value};
  }
  const place = {x: 100 * (mark.x + 0.5) / width, y: 100 * (mark.y + 0.5) / height, width: 0.2};
  return {...item, type: "keypointlabels", from_name: "click", value: {...place, keypointlabels: ["Object"]}};
}

/** The alpha values of a stroke's pixels, 0 or 255. */
function painted(stroke) {
  const context = new OffscreenCanvas(photo.naturalWidth, photo.naturalHeight).getContext("2d");
  trace(context, stroke);
  return alphaOf(context).map((alpha) => alpha > 127 ? 255 : 0);
}

function alphaOf(context) {
  const {data} = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  return Uint8Array.from({length: data.length / 4}, (_, pixel) => data[4 * pixel + 3]);
}

/** Label Studio's brush RLE of alpha values, one a pixel: runs of at most 65536 values, four a pixel. */
export function encodeRle(alpha) {
  const bytes = [];
  let current = 0, filled = 0;
  const write = (value, count) => {
    for (let bit = count - 1; bit >= 0; bit--) {
      current = current * 2 + (Math.floor(value / 2 ** bit) & 1);
      if (++filled % 8 === 0) {
        bytes.push(current);
        current = 0;
      }
    }
  };
  write(4 * alpha.length, 32);
  write(7, 5);
  [2, 3, 7, 15].forEach((size) => write(size, 4));
  for (let first = 0; first < alpha.length;) {
    let end = first + 1;
    while (end < alpha.length && alpha[end] === alpha[first] && end - first < 16384) end++;
    write(0b111, 3); // a run whose length takes 16 bits
    write(4 * (end - first) - 1, 16);
    write(alpha[first], 8);
    first = end;
  }
  write(0, (8 - filled % 8) % 8);
  return bytes;
}

/** The alpha values of Label Studio's brush RLE, one a pixel. The format is described in skipclick/brush_rle.py. */
export function decodeRle(bytes, numPixels) {
  let position = 0;
  const read = (count) => {
    let value = 0;
    for (; count > 0; count--, position++) value = value * 2 + (bytes[position >> 3] >> (7 - (position & 7)) & 1);
    return value;
  };
  const numValues = read(32);
  read(5);
  const sizes = [0, 0, 0, 0].map(() => read(4) + 1);
  if (numValues !== 4 * numPixels) throw new Error("the mask has another size than the photo");
  const alpha = new Uint8Array(numPixels);
  for (let done = 0; done < numValues;) {
    const isRun = read(1), length = read(sizes[read(2)]) + 1;
    if (isRun) {
      alpha.fill(read(8), done >> 2, (done + length) >> 2); // the fourth of a pixel's values is its alpha
    } else {
      for (let k = done; k < done + length; k++) {
        const value = read(8);
        if ((k & 3) === 3) alpha[k >> 2] = value;
      }
    }
    done += length;
  }
  return alpha;
}

/** A canvas that shows a mask: a tint with a bright edge. */
function tinted(alpha, width, height) {
  const layer = new OffscreenCanvas(width, height), context = layer.getContext("2d");
  const image = context.createImageData(width, height);
  const reach = Math.max(1, Math.round(Math.max(width, height) / 500));
  const isOut = (x, y) => x < 0 || y < 0 || x >= width || y >= height || !alpha[y * width + x];
  for (let y = 0, k = 0; y < height; y++) {
    for (let x = 0; x < width; x++, k++) {
      if (!alpha[k]) continue;
      const isEdge = isOut(x - reach, y) || isOut(x + reach, y) || isOut(x, y - reach) || isOut(x, y + reach);
      image.data.set(isEdge ? EDGE : MASK, 4 * k);
    }
  }
  context.putImageData(image, 0, 0);
  return layer;
}

// --- trying

async function segment() {
  pending?.abort();
  at("undo").disabled = marks.length === 0;
  at("clear").disabled = marks.length === 0 && !start;
  at("begin").disabled = !photo;
  if (marks.length === 0) {
    mask = null;
    say(start ? "click where the mask is wrong" : "");
    if (start) await showStart();
    draw();
    return;
  }
  draw();
  say("asking …");
  const {signal} = pending = new AbortController();
  const begin = performance.now();
  try {
    const {answer, timing} = await ask("predict", requestBody(marks.map(prompt)), signal);
    const total = performance.now() - begin;
    const [region] = answer.results[0].result;
    mask = region ? tinted(decodeRle(region.value.rle, photo.naturalWidth * photo.naturalHeight),
                           photo.naturalWidth, photo.naturalHeight) : null;
    const stages = [...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => `${name} ${Math.round(ms)} ms`);
    const found = region ? `score ${region.score.toFixed(2)}` : "no mask: click on the object first";
    const strokes = marks.filter((mark) => mark.path).length, clicks = marks.length - strokes;
    const counts = [[clicks, "click"], [strokes, "stroke"]].filter(([count]) => count)
      .map(([count, name]) => `${count} ${name}${count === 1 ? "" : "s"}`);
    say(`${counts.join(", ")} · ${found} · answered in ${Math.round(total)} ms` +
        (stages.length ? ` (${stages.join(", ")})` : ""));
  } catch (error) {
    if (error.name === "AbortError") return; // a newer click is on its way
    mask = null;
    say(error.message, true);
  }
  draw();
}

function add(mark) {
  if (!photo) return;
  cross = null;
  marks.push(mark);
  segment();
}

function undo() {
  marks.pop();
  segment();
}

function clear() {
  [marks, start] = [[], ""];
  segment();
}

/** Begin with the mask in a file: what is white, or of a picture with transparency what is opaque. */
async function beginWith(blob) {
  if (!blob || !photo) return;
  try {
    const image = await createImageBitmap(blob);
    if (image.width !== photo.naturalWidth || image.height !== photo.naturalHeight) {
      const sizes = `${image.width} × ${image.height} pixels, the photo ${photo.naturalWidth} × ${photo.naturalHeight}`;
      say(`the mask has ${sizes}`, true);
      return;
    }
    const layer = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
    const context = layer.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, layer.width, layer.height), {data} = pixels;
    const hasAlpha = data.some((value, k) => (k & 3) === 3 && value < 255);
    for (let k = 0; k < data.length; k += 4) {
      const isObject = hasAlpha ? data[k + 3] > 127 : data[k] + data[k + 1] + data[k + 2] > 381;
      data.set([0, 0, 0, isObject ? 255 : 0], k);
    }
    context.putImageData(pixels, 0, 0);
    [start, marks] = [layer.toDataURL("image/png"), []];
  } catch {
    say("this file is no image that a browser can show", true);
    return;
  }
  segment();
}

/** Put the mask that the marks will correct on the screen. */
async function showStart() {
  const image = Object.assign(new Image(), {src: start});
  await image.decode();
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  if (marks.length === 0) mask = tinted(alphaOf(context), image.width, image.height);
}

async function show(blob) {
  if (!blob) return;
  pending?.abort();
  try {
    const uri = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
    const image = new Image();
    image.src = uri;
    await image.decode();
    [photo, dataUri, marks, start, mask, cross, path] = [image, uri, [], "", null, null, null];
  } catch {
    say("this file is no image that a browser can show", true);
    return;
  }
  [canvas.width, canvas.height] = [photo.naturalWidth, photo.naturalHeight];
  canvas.hidden = false;
  at("invitation").hidden = true;
  at("stage").classList.remove("empty");
  segment();
  say("preparing the photo …");
  const {signal} = pending = new AbortController();
  const begin = performance.now();
  try {
    await ask("warm", requestBody(null), signal);
    say(`the photo was prepared in ${Math.round(performance.now() - begin)} ms; click on an object`);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function say(sentence, isError = false) {
  at("answer").textContent = sentence || "\u00a0";
  at("answer").classList.toggle("error", isError);
}

// --- drawing

function draw() {
  if (!photo) return;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(photo, 0, 0);
  if (mask) context.drawImage(mask, 0, 0);
  const pixel = canvas.width / Math.max(1, canvas.clientWidth); // of the photo, for one of the screen
  for (const click of path ? [...marks, path] : marks) {
    if (click.path) {
      context.globalAlpha = 0.7;
      trace(context, click);
      context.globalAlpha = 1;
      continue;
    }
    context.beginPath();
    context.arc(click.x + 0.5, click.y + 0.5, 8 * pixel, 0, 2 * Math.PI);
    context.fillStyle = click.positive ? GREEN : RED;
    context.fill();
    context.lineWidth = 2 * pixel;
    context.strokeStyle = "white";
    context.stroke();
    strokes(context, click, 4 * pixel, click.positive);
  }
  if (cross) {
    context.lineWidth = 3 * pixel;
    context.strokeStyle = "black";
    strokes(context, cross, 14 * pixel, true);
    context.lineWidth = pixel;
    context.strokeStyle = "white";
    strokes(context, cross, 14 * pixel, true);
  }
}

/** Draw a stroke as it was painted. */
function trace(context, {path: points, width, positive}) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x + 0.5, y + 0.5);
  if (points.length === 1) context.lineTo(points[0][0] + 0.5, points[0][1] + 0.5);
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = positive ? GREEN : RED;
  context.stroke();
}

/** A plus, or a minus, so that nobody has to tell green from red. */
function strokes(context, {x, y}, reach, isPlus) {
  context.beginPath();
  context.moveTo(x + 0.5 - reach, y + 0.5);
  context.lineTo(x + 0.5 + reach, y + 0.5);
  if (isPlus) {
    context.moveTo(x + 0.5, y + 0.5 - reach);
    context.lineTo(x + 0.5, y + 0.5 + reach);
  }
  context.stroke();
}

// --- mouse, touch, keyboard

const within = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);

function pixelOf(event) {
  const box = canvas.getBoundingClientRect();
  return [
    within((event.clientX - box.left) / box.width * canvas.width, canvas.width),
    within((event.clientY - box.top) / box.height * canvas.height, canvas.height),
  ];
}

const isPositive = (event) => document.querySelector("input[name=sign]:checked").value === "positive" && !event.altKey;

// A mouse that moves while its button is held, or a pen, paints a stroke; a finger scrolls.
canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.pointerType === "touch") return;
  canvas.setPointerCapture(event.pointerId);
  const width = STROKE * canvas.width / Math.max(1, canvas.clientWidth);
  path = {path: [pixelOf(event)], width, positive: isPositive(event)};
});
canvas.addEventListener("pointermove", (event) => {
  if (!path) return;
  path.path.push(pixelOf(event));
  if (isDrawn(path)) draw();
});
canvas.addEventListener("pointercancel", () => {
  path = null;
  draw();
});

/** Whether a path is a stroke, and not the tremble of a click. */
const isDrawn = ({path: [[left, top], ...others], width}) => others.some(([x, y]) => Math.hypot(x - left, y - top) > width);

canvas.addEventListener("click", (event) => {
  const stroke = path;
  path = null;
  if (stroke && isDrawn(stroke)) {
    add(stroke);
  } else {
    const [x, y] = pixelOf(event);
    add({x, y, positive: isPositive(event)});
  }
});
canvas.addEventListener("contextmenu", (event) => { // also a long touch
  event.preventDefault();
  const [x, y] = pixelOf(event);
  add({x, y, positive: false});
});
canvas.addEventListener("keydown", (event) => {
  const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] ?? [0, 0];
  if (!photo || event.ctrlKey || event.metaKey || event.altKey) return;
  if (dx || dy) {
    const step = Math.max(1, Math.max(canvas.width, canvas.height) / (event.shiftKey ? 20 : 100));
    cross ??= {x: canvas.width >> 1, y: canvas.height >> 1};
    cross = {x: within(cross.x + dx * step, canvas.width), y: within(cross.y + dy * step, canvas.height)};
    draw();
  } else if ((event.key === "Enter" || event.key === "-") && cross) {
    add({...cross, positive: event.key === "Enter"});
  } else if (event.key === "Backspace") {
    undo();
  } else if (event.key === "Escape") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});

at("undo").addEventListener("click", undo);
at("clear").addEventListener("click", clear);
at("file").addEventListener("change", (event) => show(event.target.files[0]));
at("begin").addEventListener("change", (event) => {
  beginWith(event.target.files[0]);
  event.target.value = ""; // the same file may be picked again
});
at("sample").addEventListener("click", async () => show(await (await fetch(new URL("ui/sample.jpg", base))).blob()));
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("over");
});
addEventListener("dragleave", () => at("stage").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("over");
  show(event.dataTransfer.files[0]);
});
addEventListener("resize", draw);

// --- status

const element = (name, text) => Object.assign(document.createElement(name), {textContent: text});
const list = (id, facts) => at(id).replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));

function memory(bytes) {
  const unit = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), 4);
  return `${(bytes / 1024 ** unit).toFixed(unit && bytes / 1024 ** unit < 10 ? 1 : 0)} ${["B", "KB", "MB", "GB", "TB"][unit]}`;
}

async function refresh() {
  let status;
  try {
    status = (await ask("status")).answer;
  } catch (error) {
    status = {ready: false, trouble: error instanceof TypeError ? "the server does not answer" : error.message};
  }
  at("readiness").textContent = status.ready ? "ready" : status.trouble;
  at("readiness").classList.toggle("ready", status.ready);
  if (!status.model) return;
  const gpu = status.device_memory;
  list("facts", [
    ["Version", status.version],
    ["Model", status.model],
    ["Device", status.device],
    ...(gpu.total ? [["GPU memory", `${memory(gpu.used)} of ${memory(gpu.total)}`]] : []),
    ["Runtime", status.runtime],
    ["Numbers", status.dtype],
    ["Network sees", `${status.resolution[1]} × ${status.resolution[0]}`],
  ]);
  at("caches").replaceChildren(...Object.entries(status.caches).map(([name, one]) => {
    const asked = one.hits + one.misses, row = document.createElement("tr");
    const cells = [name, one.entries, memory(one.bytes), asked ? `${Math.round(100 * one.hits / asked)} %` : "–"];
    row.append(...cells.map((text) => element("td", text)));
    return row;
  }));
  list("queue", Object.entries(status.queue).map(([name, length]) => [name, String(length)]));
  const jobs = status.training;
  at("training").textContent = jobs === null ? "Switched off (FINETUNE=off or follow)." : jobs.length ? "" : "None yet.";
  list("jobs", (jobs ?? []).map((job) => [named(job.project, job.number), progress(job)]));
  const {switched_on: isOn, projects} = status.proposals;
  at("proposing").textContent = !isOn ? "Switched off (PREDICT=off)." : projects.length ? "" : "No project has learnt yet.";
  list("proposals", projects.map((one) => [`project ${one.project}`, proposalsOf(one, isOn)]));
  showPictures((jobs ?? []).filter((job) => job.picture !== null));
}

const named = (project, number) => `project ${project}, #${number}`;

/** The last picture of each project; the newest is unfolded. Pictures that are there stay as the reader left them. */
function showPictures(jobs) {
  at("learnt").hidden = jobs.length === 0;
  const shown = new Map([...at("pictures").children].map((one) => [one.id, one]));
  at("pictures").replaceChildren(...jobs.map(({project, picture}, place) => {
    const id = `picture-${project}-${picture}`;
    if (shown.has(id)) return shown.get(id);
    const details = Object.assign(document.createElement("details"), {id, open: place === 0});
    const image = Object.assign(document.createElement("img"), {loading: "lazy"});
    image.alt = `Clicks before and after training ${picture} of project ${project}, and the masks that changed most`;
    image.src = new URL(`training/picture?project=${project}&number=${picture}`, base);
    details.append(element("summary", named(project, picture)), image);
    return details;
  }));
}

/** Whether a project's version proposes masks, and what its training measured of that, in a line. */
function proposalsOf({version, measured}, isOn) {
  if (!measured) return `off, its training did not measure them · ${version}`;
  const {objects, proposals, precision, recall, helps} = measured;
  const verdict = helps ? (isOn ? "on" : "good enough") : "off, not good enough";
  const shares = [["precision", precision], ["recall", recall]].filter(([, share]) => share !== undefined)
    .map(([name, share]) => `${name} ${Math.round(100 * share)} %`);
  return [verdict, shares.join(", "), `${proposals} proposed for ${objects} held-out objects`, version].join(" · ");
}

/** Where a training stands, in a line. */
function progress(job) {
  const noc = Object.entries(job.noc ?? {}).map(([name, clicks]) => `${name} ${clicks.toFixed(2)}`);
  const parts = job.state === "running"
    ? [job.stage || "starting", `${Math.round(100 * job.share)} %`, ...(job.loss === null ? [] : [`loss ${job.loss.toFixed(3)}`]),
       ...noc, ...(job.seconds_left === null ? [] : [`${Math.ceil(job.seconds_left / 60)} min left`])]
    : [job.state, ...(job.version ? [`${job.version} ${job.promoted ? "promoted" : "not promoted"}`] : []), job.reason];
  return parts.filter(Boolean).join(" · ");
}

async function keepRefreshing() {
  if (!document.hidden) await refresh();
  setTimeout(keepRefreshing, STATUS_EVERY);
}

keepRefreshing();
