//! The Kubernetes API server as a source of services and their endpoints.
