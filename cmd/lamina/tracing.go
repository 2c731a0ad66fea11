package main

import (
	"context"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
)

const (
	// tracesPath is where a collector takes traces, below its endpoint.
	tracesPath = "v1/traces"
	// exportTime is how long a collector may take for some spans, which are dropped then; later ones wait meanwhile, and are dropped
	// when there are too many.
	exportTime = 5 * time.Second
	// flushTime is how long a stop waits for the last spans to be taken.
	flushTime = 2 * time.Second
)

// tracesURL returns where the collector at an endpoint takes traces.
func tracesURL(endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("tracing.endpoint: %q is not the http:// or https:// address of an OTLP collector, as http://127.0.0.1:4318", endpoint)
	}
	return u.JoinPath(tracesPath).String(), nil
}

// A tracer sends spans of the calls to a collector. A nil one traces nothing.
type tracer struct {
	provider *sdktrace.TracerProvider
}

// openTracer makes a tracer, or none if there is no endpoint. It does not wait for the collector, which need not be there.
func openTracer(ctx context.Context, endpoint string) (*tracer, error) {
	if endpoint == "" {
		return nil, nil //nolint:nilnil // its methods take a nil
	}
	at, err := tracesURL(endpoint)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(at), otlptracehttp.WithTimeout(exportTime),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "lamina"), attribute.String("service.version", buildVersion())),
		resource.WithFromEnv()) // what the user says of the service wins
	if err != nil {
		log.G(ctx).WithError(err).Warn("what traces say of this service is not whole")
	}
	return &tracer{sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&toldExporter{SpanExporter: exporter, log: log.G(ctx)}, sdktrace.WithExportTimeout(exportTime)),
		sdktrace.WithResource(about),
	)}, nil
}

// options has a server continue the traces of its callers, whose ids come in the traceparent of W3C. Without a tracer the server is as
// it would be.
func (t *tracer) options() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // package metrics counts
	))}
}

// close sends what is left, if the collector takes it in time.
func (t *tracer) close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		log.G(ctx).WithError(err).Warn("the last traces are lost") // which is no failure of the daemon's
	}
}

// A toldExporter logs when the collector is lost, once, and when it is back.
type toldExporter struct {
	sdktrace.SpanExporter

	log  *log.Entry
	lost atomic.Bool
}

func (e *toldExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if lost := err != nil; e.lost.Swap(lost) != lost {
		if lost {
			e.log.WithError(err).Warn("the collector does not take traces, which are dropped")
		} else {
			e.log.Info("the collector takes traces again")
		}
	}
	return nil // it is told of; whoever sets a handler of such errors for the whole program need not be
}
