// OpenTelemetry for the side-car's bullmq: the add-on bullmq-otel that goes with each release, and an exporter that
// keeps the spans for the test. Loaded by the first request that asks for it: other tests do not pay for it.
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const ADD_ONS = { 'bullmq-5.28': 'bullmq-otel-1', 'bullmq-5': 'bullmq-otel-1', 'bullmq-6': 'bullmq-otel-2' };
let opened;

function open() {
  if (opened) return opened;
  const api = require('@opentelemetry/api');
  const { AsyncLocalStorageContextManager } = require('@opentelemetry/context-async-hooks');
  const { CompositePropagator, W3CBaggagePropagator, W3CTraceContextPropagator } = require('@opentelemetry/core');
  const { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base');
  const exporter = new InMemorySpanExporter();
  const propagators = [new W3CTraceContextPropagator(), new W3CBaggagePropagator()];
  api.context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  api.propagation.setGlobalPropagator(new CompositePropagator({ propagators }));
  api.trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }));
  opened = { api, exporter, addOns: new Map() };
  return opened;
}

/** The `telemetry` option of Queue, FlowProducer and Worker for a bullmq release. */
export function telemetry(version) {
  const { addOns } = open();
  if (!addOns.has(version)) {
    const { BullMQOtel } = require(ADD_ONS[version]);
    addOns.set(version, new BullMQOtel({ tracerName: version }));
  }
  return addOns.get(version);
}

/** Runs f inside a span of its own, as an HTTP handler that enqueues would; `span` is {name, baggage?}. */
export function inSpan(span, f) {
  const { api } = open();
  const entries = Object.entries(span.baggage ?? {}).map(([key, value]) => [key, { value }]);
  let context = api.context.active();
  if (entries.length > 0) context = api.propagation.setBaggage(context, api.propagation.createBaggage(Object.fromEntries(entries)));
  return api.trace.getTracer('side-car').startActiveSpan(span.name, {}, context, async active => {
    try { return await f(); } finally { active.end(); }
  });
}

/** The spans that have ended. */
export const spans = () => open().exporter.getFinishedSpans().map(span => {
  const { traceId, spanId } = span.spanContext();
  const links = span.links.map(({ context }) => ({ traceId: context.traceId, spanId: context.spanId }));
  return { name: span.name, kind: span.kind, traceId, spanId, parentSpanId: span.parentSpanContext?.spanId ?? null,
    links, attributes: span.attributes };
});
