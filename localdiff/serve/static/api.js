// Talking to the server: JSON, and streams of events over fetch. Not here: what is done with the answers.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = sessionStorage.getItem("key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

async function ask(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, {
    method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  throw new Refused(answer.status, said?.error?.message ?? `the server answered ${answer.status}`);
}

export async function load(path) {
  return (await ask(path)).json();
}

// Yields {event, data} of a stream until [DONE]; data is parsed. An error in the stream is thrown.
export async function* stream(path, body, signal) {
  const answer = await ask(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, "the server ended the answer early");
    rest += value.replaceAll("\r", "");
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const found = { event: "", data: "" };
      for (const line of rest.slice(0, end).split("\n")) {
        if (line.startsWith("event: ")) found.event = line.slice(7);
        if (line.startsWith("data: ")) found.data += line.slice(6);
      }
      rest = rest.slice(end + 2);
      if (found.data === "[DONE]") return;
      if (!found.data) continue;
      found.data = JSON.parse(found.data);
      if (found.data.error) throw new Refused(0, found.data.error.message);
      yield found;
    }
  }
}
