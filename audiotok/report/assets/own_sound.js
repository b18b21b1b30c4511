// A sound of the reader's own, through the codec that stands in the page. A worker computes, so that the page stays
// awake; it is made when the first sound comes, and never reads or sends anything.

const DRAWN_FRAMES = 300; // of the picture of the codes: more are narrower than a pixel
const LARGEST_MB = 500; // of a file: what is decoded has to fit into memory

function startOwnSound() {
  const about = data.model;
  const [drop, input] = [find("own-drop"), find("own-file")];
  let worker = null;
  let deck = null;
  let name = "";
  let made = null; // the reconstruction [C][T]
  let turn = 0; // sounds that were given: what comes of an earlier one is dropped

  function show({ stage = "", share = 0, problem = "" }) {
    find("own-going").hidden = !stage;
    find("own-stage").textContent = stage;
    find("own-progress").value = share;
    if (stage && find("own-status").textContent !== stage) find("own-status").textContent = stage;
    find("own-problem").textContent = problem;
    input.disabled = Boolean(stage);
  }

  function stop(problem = "") {
    worker?.terminate();
    worker = null;
    turn += 1;
    show({ problem });
    find("own-status").textContent = problem ? "" : "Stopped";
  }

  function begin() {
    const source = URL.createObjectURL(new Blob([OWN_SOUND_WORKER], { type: "text/javascript" }));
    worker = new Worker(source);
    const text = (id) => find(id).textContent;
    worker.postMessage({ model: { about, runtime: text("own-runtime"), encoder: text("own-encoder"), decoder: text("own-decoder") } });
  }

  // What a file holds, at the rate and with the channels of the model, and what was done to it.
  async function read(file) {
    if (file.size > LARGEST_MB * 1e6) throw new Error(`it has ${(file.size / 1e6).toFixed(0)} MB; at most ${LARGEST_MB} are read`);
    const bytes = await file.arrayBuffer();
    const buffer = await new OfflineAudioContext(1, 1, about.sample_rate).decodeAudioData(bytes).catch(() => null);
    if (!buffer) throw new Error("this browser finds no sound in it that it can decode");
    if (!buffer.length) throw new Error("it holds no sample");
    const found = buffer.numberOfChannels;
    if (found !== about.channels && found + about.channels !== 3) {
      throw new Error(`it has ${found} channels; the model takes ${about.channels}, and only mono and stereo are made of one another`);
    }
    const frames = Math.min(buffer.length, about.limit_s * about.sample_rate);
    const planes = channelsOf(buffer).map((plane) => plane.slice(0, frames));
    if (planes.some((plane) => !plane.every(Number.isFinite))) throw new Error("it holds samples that are no numbers");
    const notes = [`${file.name} at ${about.sample_rate} Hz`];
    if (frames < buffer.length) notes.push(`the first ${about.limit_s} of its ${buffer.duration.toFixed(1)} s`);
    if (found > about.channels) notes.push("mono: the mean of both channels");
    if (found < about.channels) notes.push("its one channel twice");
    if (found > about.channels) return { planes: [planes[0].map((sample, at) => (sample + planes[1][at]) / 2)], notes };
    return { planes: Array.from({ length: about.channels }, (_, channel) => planes[Math.min(channel, found - 1)]), notes };
  }

  async function take(file) {
    deck?.pause();
    const own = (turn += 1);
    find("own-result").hidden = true;
    show({ stage: "Reading" });
    try {
      const { planes, notes } = await read(file);
      if (own !== turn) return;
      show({ stage: worker ? "Encoding" : "Unpacking the model" });
      if (!worker) begin();
      worker.onerror = (event) => { event.preventDefault(); stop(`The model cannot run in this browser: ${event.message || "no worker"}`); };
      worker.onmessage = ({ data: sent }) => {
        if (own !== turn) return;
        if (sent.problem) stop(`The model cannot run: ${sent.problem}`);
        else if (sent.stage) show(sent);
        else finish(file.name, planes, notes, sent);
      };
      worker.postMessage({ wav: planes });
    } catch (error) {
      if (own === turn) show({ problem: `${file.name}: ${error.message}.` });
    }
  }

  function finish(file, planes, notes, { codes, wav, seconds }) {
    show({});
    find("own-status").textContent = "Ready to play";
    [name, made] = [file, wav];
    const { sample_rate: rate, frame_rate: frameRate, n_q: books, bins } = about;
    const bits = books * Math.log2(bins);
    find("own-notes").textContent = `${notes.join(", ")}.`;
    const used = codes.map((row) => new Set(row).size);
    facts([
      ["Bit rate", `${((bits * frameRate) / 1000).toPrecision(3).replace(/\.?0+$/, "")} kb/s`],
      ["Codes", `${codes[0].length} frames × ${books} codebook${books === 1 ? "" : "s"}`],
      ["Different codes, by codebook", `${used.join(", ")} of ${bins}`],
      ["Encoded and decoded in", `${seconds.toFixed(1)} s, ${(planes[0].length / rate / seconds).toPrecision(2)} times as fast as it plays`],
    ]);
    draw(codes);
    find("own-result").hidden = false; // before the deck, whose changes are shown
    listen(planes, wav);
  }

  function facts(pairs) {
    find("own-facts").replaceChildren(...pairs.map(([term, value]) => {
      const box = make("div");
      box.append(make("dt", "", term), make("dd", "", value));
      return box;
    }));
  }

  function draw(codes) { // a pixel a code; steps of the golden angle keep neighbouring codes apart
    const canvas = find("own-codes");
    const frames = Math.min(DRAWN_FRAMES, codes[0].length);
    find("own-drawn").textContent = frames < codes[0].length ? `the first ${frames} frames` : "all frames";
    Object.assign(canvas, { width: frames, height: codes.length });
    canvas.style.height = `${Math.min(12, Math.max(2, codes.length * 1.2))}rem`;
    canvas.setAttribute("aria-label", `Codes: ${codes.length} rows of ${frames} frames`);
    const brush = canvas.getContext("2d");
    codes.forEach((row, book) => row.subarray(0, frames).forEach((code, frame) => {
      brush.fillStyle = `hsl(${(code * 137.508) % 360} 55% ${38 + ((code * 7) % 5) * 6}%)`;
      brush.fillRect(frame, book, 1, 1);
    }));
  }

  function listen(planes, wav) {
    deck?.close();
    const { sample_rate: sampleRate } = about;
    const length = planes[0].length;
    const buffers = [planes, wav].map((channels) => {
      const buffer = new AudioBuffer({ length, sampleRate, numberOfChannels: channels.length });
      channels.forEach((plane, channel) => buffer.copyToChannel(plane, channel));
      return buffer;
    });
    const [power, other] = [planes, wav].map((channels) => mean(channels.map((plane) => mean(plane.map((sample) => sample ** 2)))));
    const gain = power > 0 && other > 0 ? Math.sqrt(power / other) : 1;
    const highest = Math.max(1, peakOf(planes), peakOf(wav) * gain);
    const decibel = (20 * Math.log10(gain)).toFixed(1).replace("-", "−").replace(/^(?=\d)/, "+");
    find("own-level").textContent = power > 0 && other > 0
      ? `For listening the reconstruction is made as loud as the original: ${decibel} dB.${highest > 1 ? " Both are turned down so that neither clips." : ""}`
      : "One of them is silent: their levels are as they are.";
    deck = new Deck(sampleRate, length, update);
    find("own-position").max = length / sampleRate;
    deck.put(0, buffers[0], 1 / highest);
    deck.put(1, buffers[1], gain / highest);
    deck.repeat(false);
    deck.choose(1);
  }

  function update() {
    find("own-play").textContent = deck.playing ? "Pause" : "Play";
    for (const button of document.querySelectorAll("[data-own]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.own) === deck.index);
    }
    find("own-position").value = deck.position;
    find("own-position").setAttribute("aria-valuetext", `${deck.position.toFixed(1)} seconds`);
    find("own-time").textContent = clock(deck.position, deck.frames / deck.rate);
  }

  on("own-file", "click", () => { input.value = ""; }); // so that the same file can be chosen again
  on("own-file", "change", () => { if (input.files.length) take(input.files[0]); });
  on("own-stop", "click", () => stop());
  on("own-play", "click", () => deck.toggle());
  on("own-position", "input", () => deck.seek(Number(find("own-position").value)));
  on("own-save", "click", () => saveFile(wavFile(made, about.sample_rate), `${name.replace(/\.[^.]*$/, "")}_${about.name}.wav`));
  for (const button of document.querySelectorAll("[data-own]")) {
    button.addEventListener("click", () => deck.choose(Number(button.dataset.own)));
  }
  for (const event of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(event, (dropped) => {
      dropped.preventDefault();
      drop.classList.toggle("over", event === "dragover");
      if (event !== "drop" || input.disabled) return;
      const [file] = dropped.dataTransfer.files;
      if (file) take(file);
      else show({ problem: "That is no file; drop one from a folder." });
    });
  }
  drop.hidden = false;
}

const peakOf = (planes) => Math.max(...planes.map((plane) => plane.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0)));

// Planes [C][T] as a wav file of 32-bit floats, in which nothing is rounded or clipped.
function wavFile(planes, rate) {
  const [channels, frames] = [planes.length, planes[0].length];
  const view = new DataView(new ArrayBuffer(58 + 4 * channels * frames));
  let at = 0;
  const text = (word) => { for (const letter of word) { view.setUint8(at, letter.charCodeAt(0)); at += 1; } };
  const four = (value) => { view.setUint32(at, value, true); at += 4; };
  const two = (value) => { view.setUint16(at, value, true); at += 2; };
  text("RIFF"); four(50 + 4 * channels * frames); text("WAVE");
  text("fmt "); four(18); two(3); two(channels); four(rate); four(4 * channels * rate); two(4 * channels); two(32); two(0);
  text("fact"); four(4); four(frames);
  text("data"); four(4 * channels * frames);
  for (let frame = 0; frame < frames; frame += 1) {
    for (const plane of planes) { view.setFloat32(at, plane[frame], true); at += 4; }
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}

startOwnSound();
