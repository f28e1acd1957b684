// Requests to the server of this page. Each carries the token of the page's address in a header, so that no link contains it.

export class Api {
  constructor(token) {
    // The server shares its time among tabs by this name.
    this.tab = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    this.headers = { Authorization: `Bearer ${token}` };
  }

  async request(path, options = {}) {
    const answer = await reached(fetch(path, { ...options, headers: { ...this.headers, ...options.headers } }));
    if (!answer.ok) throw new Error(await messageOf(answer));
    return answer;
  }

  get(path) {
    return this.request(path);
  }

  post(path, body, signal) {
    const text = typeof body === "string" ? body : JSON.stringify({ ...body, tab: this.tab });
    return this.request(path, { method: "POST", body: text, headers: { "Content-Type": "application/json" }, signal });
  }

  async json(path, body) {
    const answer = body === undefined ? await this.get(path) : await this.post(path, body);
    return answer.json();
  }

  // Calls onLine with each record of an answer of JSON lines, as soon as the line is complete.
  async lines(path, body, signal, onLine) {
    const answer = await this.post(path, body, signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reached(reader.read());
      const lines = (rest + (value ?? "")).split("\n");
      rest = done ? "" : lines.pop();
      lines.filter((line) => line.trim()).forEach((line) => onLine(JSON.parse(line)));
      if (done) return;
    }
  }
}

// What fails without an answer, but for requests that this page ended.
async function reached(connection) {
  try {
    return await connection;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; start it again with: dlmjax play RUN");
  }
}

async function messageOf(answer) {
  const text = await answer.text();
  let message = `the server answers with status ${answer.status}`;
  try {
    message = JSON.parse(text).error ?? message;
  } catch {
    // An answer that is not JSON has no line of its own.
  }
  const wait = answer.headers.get("Retry-After");
  return wait ? `${message}; try again in ${wait} s` : message;
}
