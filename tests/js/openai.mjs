// What the OpenAI SDK for JavaScript sees; each scenario takes `{url, model, …}`.
import OpenAI from "openai";
import { now, open, run, until } from "./report.mjs";

const connect = ({ url, retries = 0, headers }) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: retries, timeout: 20_000, defaultHeaders: headers });
const asked = ({ model, text, more }) => ({ model, messages: [{ role: "user", content: text }], ...more });

const scenarios = {
  async chat(options) {
    const { data, response } = await connect(options).chat.completions.create(asked(options)).withResponse();
    const [choice] = data.choices;
    return {
      text: choice.message.content, tool_calls: choice.message.tool_calls, finish_reason: choice.finish_reason,
      usage: data.usage, request_id: data._request_id, call_id: response.headers.get("x-tpo-call-id"),
    };
  },

  async stream(options) {
    const seen = { text: "", events: 0, finish_reason: null, usage: null };
    const stream = await connect(options).chat.completions.create({ ...asked(options), stream: true });
    try {
      for await (const event of stream) {
        seen.events += 1;
        seen.usage = event.usage ?? seen.usage;
        for (const choice of event.choices) {
          seen.text += choice.delta.content ?? "";
          seen.finish_reason = choice.finish_reason ?? seen.finish_reason;
        }
      }
    } catch (error) {
      if (!(error instanceof OpenAI.APIError)) throw error;
      seen.error = { class: error.constructor.name, message: error.message };
    }
    return seen;
  },

  // The SDK's own loop: it calls `weather`, answers the model and asks again.
  async tools(options) {
    const called = [];
    const weather = { type: "function", function: { name: "weather", description: "Asks.", parse: JSON.parse,
      parameters: { type: "object", properties: { city: { type: "string" } } },
      function: (given) => { called.push(given); return "sun"; } } };
    const runner = connect(options).chat.completions.runTools(
      { ...asked(options), tools: [weather], stream: options.stream ?? false }, { maxChatCompletions: 2 });
    await runner.done();
    return { called, roles: runner.messages.map((message) => message.role) };
  },

  async models(options) {
    const client = connect(options);
    const listed = [];
    for await (const model of client.models.list()) listed.push(model.id);
    return { listed, one: await client.models.retrieve(options.model) };
  },

  async embeddings(options) {
    const { data, usage } = await connect(options).embeddings.create({ model: options.model, input: options.input });
    return { sizes: data.map((entry) => entry.embedding.length), first: data[0].embedding.slice(0, 4), usage };
  },

  async responses(options) {
    const client = connect(options);
    const made = await client.responses.create({ model: options.model, input: options.text });
    const again = await client.responses.retrieve(made.id);
    const next = await client.responses.create(
      { model: options.model, input: "and then?", previous_response_id: made.id });
    const streamed = { text: "", types: [] };
    for await (const event of await client.responses.create(
      { model: options.model, input: options.text, stream: true })) {
      streamed.types.push(event.type);
      if (event.type === "response.output_text.delta") streamed.text += event.delta;
    }
    await client.responses.delete(made.id);
    const gone = await client.responses.retrieve(made.id).catch((error) => error.status);
    return { text: made.output_text, kept: again.output_text, next: next.status, streamed, gone, id: made.id };
  },

  // Leaves `times` calls, waiting for their first byte or in mid-stream; answers the moments it left.
  async abort(options) {
    const client = connect(options);
    const left = [];
    for (let round = 0; round < options.times; round += 1) {
      if (options.control) await until(async () => (await open(options.control)) === 0);
      const controller = new AbortController();
      const stream = options.moment === "streaming";
      const going = client.chat.completions.create({ ...asked(options), stream }, { signal: controller.signal });
      let outcome;
      if (stream) {
        for await (const event of await going) {
          if (controller.signal.aborted || !event.choices[0]?.delta.content) continue;
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

await run(scenarios, OpenAI.APIError);
