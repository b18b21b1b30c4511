// Beside the page: unpacks ONNX Runtime and the model when the first sound comes, then encodes and decodes. It stands
// in the page's script as text, after the runtime, whose exports are `ort`.

const CONTEXT_S = 2; // on both sides of a piece, computed and dropped
const PIECE_S = 10;
let model = null; // { about, encoder, decoder }

async function unpacked(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place += 1) bytes[place] = binary.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load({ about, runtime, encoder, decoder }) {
  ort.env.logLevel = "error";
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: await unpacked(runtime) });
  const session = async (text) => ort.InferenceSession.create(await unpacked(text), { executionProviders: ["wasm"] });
  model = { about, encoder: await session(encoder), decoder: await session(decoder) };
  delete ort.env.wasm.wasmBinary;
}

// A part of planes [C][T] as one tensor [1, C, t].
const part = (planes, from, to) => {
  const joined = new Float32Array(planes.length * (to - from));
  planes.forEach((plane, channel) => joined.set(plane.subarray(from, to), channel * (to - from)));
  return new ort.Tensor("float32", joined, [1, planes.length, to - from]);
};

// Pieces of so many frames with their context: [start, from, to, end]. Where all of a sound counts there is one.
function pieces(frames, { frame_rate: rate, one_pass: whole }) {
  const length = whole ? frames : Math.round(PIECE_S * rate);
  const context = Math.ceil(CONTEXT_S * rate);
  return Array.from({ length: Math.ceil(frames / length) }, (_, place) => {
    const [from, to] = [place * length, Math.min(frames, (place + 1) * length)];
    return [Math.max(0, from - context), from, to, Math.min(frames, to + context)];
  });
}

async function encoded(wav, hop, all, step) {
  const { about, encoder } = model;
  const frames = all.at(-1)[2];
  const codes = Array.from({ length: about.n_q }, () => new BigInt64Array(frames));
  let scale = null;
  for (const [start, from, to, end] of all) {
    const out = await encoder.run({ wav: part(wav, start * hop, Math.min(wav[0].length, end * hop)) });
    const width = out.codes.dims[2];
    codes.forEach((row, book) => {
      row.set(out.codes.data.subarray(book * width + from - start, book * width + to - start), from);
    });
    scale = out.scale ?? null;
    step();
  }
  return { codes, scale };
}

async function decoded({ codes, scale }, hop, all, step) {
  const { about, decoder } = model;
  const wav = Array.from({ length: about.channels }, () => new Float32Array(all.at(-1)[2] * hop));
  for (const [start, from, to, end] of all) {
    const joined = new BigInt64Array(about.n_q * (end - start));
    codes.forEach((row, book) => joined.set(row.subarray(start, end), book * (end - start)));
    const input = { codes: new ort.Tensor("int64", joined, [1, about.n_q, end - start]) };
    const { data } = (await decoder.run(scale ? { ...input, scale } : input)).wav;
    const width = (end - start) * hop;
    wav.forEach((plane, channel) => {
      plane.set(data.subarray(channel * width + (from - start) * hop, channel * width + (to - start) * hop), from * hop);
    });
    step();
  }
  return wav;
}

async function coded(wav) {
  const hop = Math.round(model.about.sample_rate / model.about.frame_rate);
  const all = pieces(Math.ceil(wav[0].length / hop), model.about);
  let done = 0;
  const step = (stage) => () => { done += 1; postMessage({ stage, share: done / (2 * all.length) }); };
  postMessage({ stage: "Encoding", share: 0 });
  const began = performance.now();
  const found = await encoded(wav, hop, all, step(all.length > 1 ? "Encoding" : "Decoding"));
  const planes = await decoded(found, hop, all, step("Decoding"));
  const codes = found.codes.map((row) => Int32Array.from(row, Number));
  const reconstruction = planes.map((plane) => plane.subarray(0, wav[0].length)); // the last frame may reach beyond
  postMessage({ codes, wav: reconstruction, seconds: (performance.now() - began) / 1000 });
}

let turn = Promise.resolve(); // one message after another: a sound waits for the model

async function answer(data) {
  try {
    if (data.model) await load(data.model);
    else await coded(data.wav);
  } catch (error) {
    postMessage({ problem: String(error?.message ?? error).split("\n")[0] });
  }
}

onmessage = ({ data }) => { turn = turn.then(() => answer(data)); };
