//! Objects as a real API server writes them, with the fields that nobody here reads.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// Where a Service of the namespace `ns` is told what it is.
pub const EXPORTED: &str = "mirror.linkerd.io/exported";

/// The collection that an object lives in.
pub(super) fn collection(object: &Value) -> &'static str {
    match object["kind"].as_str() {
        Some("Service") => "services",
        Some("EndpointSlice") => "endpointslices",
        kind => panic!("no collection for {kind:?}"),
    }
}

/// What a list of the collection is called.
pub(super) fn list_kind(collection: &str) -> (&'static str, &'static str) {
    match collection {
        "services" => ("v1", "ServiceList"),
        _ => ("discovery.k8s.io/v1", "EndpointSliceList"),
    }
}

fn metadata(namespace: &str, name: &str, labels: &Value) -> Value {
    json!({
        "name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}"),
        "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels,
        "managedFields": [{ "manager": "kube-controller-manager", "operation": "Update", "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:labels": { "f:app": {} } }, "f:spec": { "f:ports": {} } } }],
    })
}

/// An exported Service in the namespace `ns`; ports are written as in its spec.
pub fn service(name: &str, ports: &Value) -> Value {
    service_in("ns", name, ports)
}

/// The same in another namespace.
pub fn service_in(namespace: &str, name: &str, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(namespace, name, &json!({ EXPORTED: "true", "app": name })),
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
            "ports": ports, "selector": { "app": name }, "sessionAffinity": "None",
        },
        "status": { "loadBalancer": {} },
    })
}

/// The Service without the label that exports it.
pub fn withdrawn(service: &Value) -> Value {
    let mut service = service.clone();
    service["metadata"]["labels"].as_object_mut().unwrap().remove(EXPORTED);
    service
}

/// A slice of the Service `NAME` with one endpoint: the port is named `http`.
pub fn slice(service: &str, number: usize, addr: SocketAddr) -> Value {
    slice_of("ns", service, number, &json!([{ "name": "http", "port": addr.port() }]), &json!([endpoint(addr)]))
}

/// Any slice.
pub fn slice_of(namespace: &str, service: &str, number: usize, ports: &Value, endpoints: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(namespace, &format!("{service}-{number}"), &json!({
            "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        })),
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

/// A ready endpoint.
pub fn endpoint(addr: SocketAddr) -> Value {
    json!({
        "addresses": [addr.ip()], "conditions": { "ready": true, "serving": true, "terminating": false },
        "nodeName": "node-1", "targetRef": { "kind": "Pod", "name": "pod-1", "namespace": "ns" },
    })
}

/// One port called `http`.
pub fn http(port: u16) -> Value {
    json!([{ "name": "http", "port": port, "targetPort": "web", "protocol": "TCP" }])
}
