//! OpenTelemetry for the examples: exported by OTLP over HTTP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set, else nothing.

use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::{Resource, metrics::SdkMeterProvider, trace::SdkTracerProvider};
use tower_adaptive_pool::Otel;

/// Where the standard says the collector is.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The providers of this program, if anything is exported.
pub struct Telemetry(Option<(SdkTracerProvider, SdkMeterProvider)>);

impl Telemetry {
    pub fn from_env() -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        if std::env::var_os(ENDPOINT).is_none() {
            return Ok(Self(None));
        }
        let resource = Resource::builder().with_service_name("tower-adaptive-pool-example").build();
        let tracers = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(SpanExporter::builder().with_http().build()?)
            .build();
        let meters = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_periodic_exporter(MetricExporter::builder().with_http().build()?)
            .build();
        Ok(Self(Some((tracers, meters))))
    }

    /// What to give to a pool's builder.
    pub fn observer(&self) -> Option<Otel<SdkTracerProvider>> {
        self.0.as_ref().map(|(tracers, meters)| Otel::new(tracers.clone(), meters))
    }

    /// Sends what is still to be sent.
    pub fn shutdown(self) {
        if let Some((tracers, meters)) = self.0 {
            let _ = tracers.shutdown();
            let _ = meters.shutdown();
        }
    }
}
