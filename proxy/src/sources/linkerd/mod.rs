//! A Linkerd control plane as a source: who the gateway is, where services are, and who may reach it.
