"""What models cost: parameters, FLOPs, latency, throughput, training steps and memory, compared to a baseline."""
