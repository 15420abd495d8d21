//! Reads an export as BitNet-rs does, with serde's plain derives, and prints what was read as JSON.
//!
//! Names and types of the fields are those of BitNet-rs at f2ae3adc01e2bdfb8c046d8847f82500749ac6fa:
//! crates/bitnet-models/src/production_loader.rs (DeviceConfig, DeviceStrategy) and
//! crates/bitnet-common/src/config.rs (BitNetConfig.performance, PerformanceConfig).

use serde::{Deserialize, Serialize};
use std::io::Read;

#[derive(Deserialize, Serialize)]
struct DeviceConfig {
    strategy: Option<DeviceStrategy>,
    cpu_threads: Option<usize>,
    gpu_memory_fraction: Option<f32>,
    recommended_batch_size: usize,
}

#[derive(Deserialize, Serialize)]
enum DeviceStrategy {
    CpuOnly,
    GpuOnly,
    Hybrid { cpu_layers: usize, gpu_layers: usize },
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct BitNetConfig {
    performance: PerformanceConfig,
}

#[derive(Deserialize, Serialize)]
#[serde(default)]
struct PerformanceConfig {
    num_threads: Option<usize>,
    use_gpu: bool,
    batch_size: usize,
    memory_limit: Option<usize>,
}

impl Default for PerformanceConfig {
    fn default() -> Self {
        Self { num_threads: None, use_gpu: false, batch_size: 1, memory_limit: None }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let form = std::env::args().nth(1).ok_or("expected a form")?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let read = match form.as_str() {
        "device-config" => serde_json::to_string(&serde_json::from_str::<DeviceConfig>(&text)?)?,
        "performance-json" => serde_json::to_string(&serde_json::from_str::<BitNetConfig>(&text)?)?,
        "performance-toml" => serde_json::to_string(&toml::from_str::<BitNetConfig>(&text)?)?,
        _ => return Err("expected a form that serde reads".into()),
    };
    println!("{read}");
    Ok(())
}
