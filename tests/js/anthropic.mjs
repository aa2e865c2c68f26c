// What the Anthropic SDK for JavaScript sees; each scenario takes `{url, model, …}`.
import Anthropic from "@anthropic-ai/sdk";
import { now, open, run, until } from "./report.mjs";

const connect = ({ url, retries = 0, headers }) =>
  new Anthropic({ baseURL: url, apiKey: "unused", maxRetries: retries, timeout: 20_000, defaultHeaders: headers });
const asked = ({ model, text, more }) => ({ model, max_tokens: 2000, messages: [{ role: "user", content: text }], ...more });
const words = (message) => message.content.filter((block) => block.type === "text").map((block) => block.text).join("");

const scenarios = {
  async chat(options) {
    const { data, response } = await connect(options).messages.create(asked(options)).withResponse();
    return {
      text: words(data), content: data.content, finish_reason: data.stop_reason, usage: data.usage,
      request_id: data._request_id, call_id: response.headers.get("x-tpo-call-id"),
    };
  },

  async stream(options) {
    const seen = { text: "", events: 0, types: [], finish_reason: null, usage: null };
    try {
      const stream = connect(options).messages.stream(asked(options));
      stream.on("text", (delta) => { seen.text += delta; });
      for await (const event of stream) {
        seen.events += 1;
        seen.types.push(event.type);
      }
      const message = await stream.finalMessage();
      Object.assign(seen, { final: words(message), finish_reason: message.stop_reason, usage: message.usage });
    } catch (error) {
      if (!(error instanceof Anthropic.APIError)) throw error;
      seen.error = { class: error.constructor.name, message: error.message };
    }
    return seen;
  },

  // The SDK's own loop: it calls `weather`, answers the model and asks again.
  async tools(options) {
    const called = [];
    const weather = { type: "custom", name: "weather", description: "Asks.",
      input_schema: { type: "object", properties: { city: { type: "string" } } },
      parse: (given) => given, run: (given) => { called.push(given); return "sun"; } };
    const runner = connect(options).beta.messages.toolRunner(
      { ...asked(options), tools: [weather], max_iterations: 2 });
    await runner.runUntilDone();
    return { called, roles: runner.params.messages.map((message) => message.role) };
  },

  async models(options) {
    const client = connect(options);
    const listed = [];
    for await (const model of client.models.list()) listed.push(model.id);
    return { listed, one: await client.models.retrieve(options.model) };
  },

  // Leaves `times` calls, waiting for their first byte or in mid-stream; answers the moments it left.
  async abort(options) {
    const client = connect(options);
    const left = [];
    for (let round = 0; round < options.times; round += 1) {
      if (options.control) await until(async () => (await open(options.control)) === 0);
      const controller = new AbortController();
      const stream = options.moment === "streaming";
      const going = client.messages.create({ ...asked(options), stream }, { signal: controller.signal });
      let outcome;
      if (stream) {
        for await (const event of await going) {
          if (controller.signal.aborted || event.type !== "content_block_delta") continue;
          left.push(now());
          controller.abort();
        }
        outcome = "ended";
      } else {
        outcome = going.catch((error) => error.constructor.name);
        await until(async () => (await open(options.control)) === 1);
        left.push(now());
        controller.abort();
      }
      if ((await outcome) !== (stream ? "ended" : "APIUserAbortError")) throw new Error(`not aborted: ${await outcome}`);
    }
    return { left };
  },
};

await run(scenarios, Anthropic.APIError);
