// The page /ui: the server's status, and a place to try the model. It asks /predict as Label Studio does.

const LABEL_CONFIG = `<View><Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="false"><Label value="Object"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Object"/></KeyPointLabels></View>`;
const STATUS_EVERY = 3000; // milliseconds
const GREEN = "#18a558", RED = "#e03c3c", MASK = [30, 136, 255, 115], EDGE = [255, 255, 255, 235]; // RGBA

const at = (id) => document.getElementById(id);
const canvas = at("photo");
const base = location.origin + location.pathname; // without a password that may stand in the address

// What is on screen. Clicks are pixels of the photo; `mask` is a canvas of the photo's size, or null.
let photo = null, dataUri = "", clicks = [], mask = null, cross = null, pending = null;

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
    params: {context: result && {result}},
  };
}

function keypoint(click, number) {
  const width = photo.naturalWidth, height = photo.naturalHeight;
  return {
    id: `ui-${number}`,
    type: "keypointlabels",
    from_name: "click",
    to_name: "image",
    original_width: width,
    original_height: height,
    image_rotation: 0,
    is_positive: click.positive,
    value: {
      x: 100 * (click.x + 0.5) / width,
      y: 100 * (click.y + 0.5) / height,
      width: 0.2,
      keypointlabels: ["Object"],
    },
  };
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
  at("undo").disabled = at("clear").disabled = clicks.length === 0;
  if (clicks.length === 0) {
    mask = null;
    say("");
    draw();
    return;
  }
  draw();
  say("asking …");
  const {signal} = pending = new AbortController();
  const begin = performance.now();
  try {
    const {answer, timing} = await ask("predict", requestBody(clicks.map(keypoint)), signal);
    const total = performance.now() - begin;
    const [region] = answer.results[0].result;
    mask = region ? tinted(decodeRle(region.value.rle, photo.naturalWidth * photo.naturalHeight),
                           photo.naturalWidth, photo.naturalHeight) : null;
    const stages = [...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => `${name} ${Math.round(ms)} ms`);
    const found = region ? `score ${region.score.toFixed(2)}` : "no mask: click on the object first";
    say(`${clicks.length} ${clicks.length === 1 ? "click" : "clicks"} · ${found} · answered in ${Math.round(total)} ms` +
        (stages.length ? ` (${stages.join(", ")})` : ""));
  } catch (error) {
    if (error.name === "AbortError") return; // a newer click is on its way
    mask = null;
    say(error.message, true);
  }
  draw();
}

function addClick(x, y, positive) {
  if (!photo) return;
  clicks.push({x, y, positive});
  segment();
}

function undo() {
  clicks.pop();
  segment();
}

function clear() {
  clicks = [];
  segment();
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
    [photo, dataUri, clicks, mask, cross] = [image, uri, [], null, null];
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
  for (const click of clicks) {
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

canvas.addEventListener("click", (event) => {
  cross = null;
  addClick(...pixelOf(event), document.querySelector("input[name=sign]:checked").value === "positive" && !event.altKey);
});
canvas.addEventListener("contextmenu", (event) => { // also a long touch
  event.preventDefault();
  cross = null;
  addClick(...pixelOf(event), false);
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
    addClick(cross.x, cross.y, event.key === "Enter");
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
