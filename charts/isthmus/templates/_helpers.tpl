{{/* Names. */}}
{{- define "isthmus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "isthmus.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "isthmus.serviceAccount" -}}
{{- default (include "isthmus.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* What pods are selected by: never changes within a release. */}}
{{- define "isthmus.selector" -}}
app.kubernetes.io/name: {{ include "isthmus.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "isthmus.labels" -}}
app.kubernetes.io/name: {{ include "isthmus.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "isthmus.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Who the gateway is: the name in its certificate, and in the annotation that links read. */}}
{{- define "isthmus.identity" -}}
{{- if .Values.identity.name -}}
{{- .Values.identity.name -}}
{{- else -}}
{{- printf "%s.%s.serviceaccount.identity.%s.%s" (include "isthmus.serviceAccount" .) .Release.Namespace .Values.identity.linkerdNamespace .Values.identity.trustDomain -}}
{{- end -}}
{{- end -}}

{{- define "isthmus.identitySecret" -}}
{{- if eq .Values.identity.source "certManager" -}}
{{- default (printf "%s-identity" (include "isthmus.fullname" .)) .Values.identity.certManager.secretName -}}
{{- else -}}
{{- .Values.identity.secret.name -}}
{{- end -}}
{{- end -}}

{{/* What mirrors of each era ask for. */}}
{{- define "isthmus.probePort" -}}
{{- if .Values.service.probe.port -}}
{{- .Values.service.probe.port | int -}}
{{- else -}}
{{- eq .Values.service.probe.preset "health-4181" | ternary 4181 4191 -}}
{{- end -}}
{{- end -}}

{{- define "isthmus.probePath" -}}
{{- default (eq .Values.service.probe.preset "health-4181" | ternary "/health" "/ready") .Values.service.probe.path -}}
{{- end -}}

{{/* A duration as the gateway writes them, in whole seconds, rounded up. */}}
{{- define "isthmus.seconds" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := regexFind "[a-z]*$" $text -}}
{{- $factor := get (dict "ms" "0.001" "s" "1" "m" "60" "h" "3600" "d" "86400" "" "1") $unit -}}
{{- mulf (float64 $number) (float64 $factor) | ceil | int64 -}}
{{- end -}}

{{/* After the deadline the process takes up to four seconds for its threads and its log, and the kubelet's clock is not ours. */}}
{{- define "isthmus.gracePeriod" -}}
{{- add (include "isthmus.seconds" .Values.drain.deadline | int64) 10 -}}
{{- end -}}

{{/* The accounts of remote mirrors, from a name, a comma separated list or a list; as a JSON list. */}}
{{- define "isthmus.remoteAccounts" -}}
{{- $given := .Values.remoteMirrorServiceAccountName -}}
{{- $list := kindIs "slice" $given | ternary $given (splitList "," (toString (default "" $given))) -}}
{{- $names := list -}}
{{- range $list -}}
{{- with trim . -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* Which series are this release's. */}}
{{- define "isthmus.series" -}}
namespace={{ .Release.Namespace | quote }},pod=~"{{ include "isthmus.fullname" . }}-[a-z0-9]+-[a-z0-9]+"
{{- end -}}

{{- define "isthmus.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
{{- end -}}

{{- define "isthmus.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# The private key is readable for this group, and for nobody else.
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "isthmus.volumeMounts" -}}
- {name: config, mountPath: /etc/isthmus/config, readOnly: true}
- {name: identity, mountPath: /etc/isthmus/identity, readOnly: true}
{{- if eq .Values.identity.source "linkerd" }}
- {name: identity-token, mountPath: /var/run/secrets/tokens, readOnly: true}
{{- end }}
{{- end -}}

{{/* What only the pod knows of itself. */}}
{{- define "isthmus.env" -}}
{{- if eq .Values.discovery.source "kubernetes" }}
# By it the gateway finds itself among the endpoints, and so the zone it runs in.
- {name: ISTHMUS_POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
{{- end }}
{{- if include "isthmus.linkerd" . }}
# What Linkerd's control plane wants to know of who asks, and the addresses that are no endpoints.
- {name: ISTHMUS_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: ISTHMUS_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: ISTHMUS_POD_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
- {name: ISTHMUS_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whether a Linkerd control plane is asked for services or for the policy. */}}
{{- define "isthmus.linkerd" -}}
{{- if or (eq .Values.discovery.source "linkerd") (eq (dig "source" "" .Values.policy) "linkerd") -}}yes{{- end -}}
{{- end -}}

{{- define "isthmus.volumes" -}}
{{- $identity := .Values.identity -}}
{{- $bundle := $identity.trustBundle -}}
- name: config
  configMap: {name: {{ include "isthmus.fullname" . }}}
# One volume, so that certificate, key and anchors change at the same moment.
- name: identity
  projected:
    defaultMode: 288 # 0440
    sources:
      {{- if ne $identity.source "linkerd" }}
      - secret:
          name: {{ include "isthmus.identitySecret" . }}
          items:
            - {key: {{ eq $identity.source "certManager" | ternary "tls.crt" $identity.secret.certificateKey }}, path: gateway.crt}
            - {key: {{ eq $identity.source "certManager" | ternary "tls.key" $identity.secret.privateKeyKey }}, path: gateway.key}
      {{- end }}
      {{- if eq $bundle.source "secret" }}
      - secret:
          name: {{ default (include "isthmus.identitySecret" .) $bundle.name }}
          items: [{key: {{ $bundle.key }}, path: anchors.crt}]
      {{- else }}
      - configMap:
          name: {{ eq $bundle.source "inline" | ternary (printf "%s-anchors" (include "isthmus.fullname" .)) $bundle.name }}
          items: [{key: {{ eq $bundle.source "inline" | ternary "anchors.crt" $bundle.key }}, path: anchors.crt}]
      {{- end }}
      {{- with $identity.crl.configMap }}
      - configMap:
          name: {{ . }}
          items:
            {{- range $identity.crl.keys }}
            - {key: {{ . }}, path: crl/{{ . }}}
            {{- end }}
      {{- end }}
{{- if eq $identity.source "linkerd" }}
# What the identity controller is shown; the kubelet replaces it long before it ends, and it is read anew for each call.
- name: identity-token
  projected:
    defaultMode: 288 # 0440
    sources:
      - serviceAccountToken: {audience: identity.l5d.io, expirationSeconds: 86400, path: linkerd-identity-token}
{{- end }}
{{- end -}}

{{/* The gateway's configuration: what the chart decides, and the operator's own words on top. */}}
{{- define "isthmus.config" -}}
{{- $crls := list -}}
{{- if .Values.identity.crl.configMap -}}
{{- range .Values.identity.crl.keys -}}{{- $crls = append $crls (printf "/etc/isthmus/identity/crl/%s" .) -}}{{- end -}}
{{- end -}}
{{- $tls := dict "chain_file" "/etc/isthmus/identity/gateway.crt" "key_file" "/etc/isthmus/identity/gateway.key" "bundle_file" "/etc/isthmus/identity/anchors.crt" -}}
{{- $linkerd := .Values.identity.linkerdNamespace -}}
{{- $mesh := printf "serviceaccount.identity.%s.%s" $linkerd .Values.identity.trustDomain -}}
{{- if eq .Values.identity.source "linkerd" -}}{{- $tls = dict "bundle_file" "/etc/isthmus/identity/anchors.crt" -}}{{- end -}}
{{- if $crls -}}{{- $_ := set $tls "crl_files" $crls -}}{{- end -}}
{{- $accept := dict "listen" (printf "%s:4143" .Values.listenAddress) -}}
{{- with .Values.service.proxyProtocol.networks -}}{{- $_ := set $accept "proxy_networks" . -}}{{- end -}}
{{- $probe := dict "listen" (printf "%s:4181" .Values.listenAddress) "plaintext" true -}}
{{- if not (has (include "isthmus.probePath" .) (list "/health" "/ready")) -}}{{- $_ := set $probe "path" (include "isthmus.probePath" .) -}}{{- end -}}
{{- $ours := dict
    "tls" $tls
    "accept" $accept
    "probe" $probe
    "admin" (dict "listen" (.Values.metrics.enabled | ternary (printf "%s:4191" .Values.listenAddress) "127.0.0.1:4191"))
    "drain" (dict "announce" .Values.drain.announce "deadline" .Values.drain.deadline)
    "route" (dict "suffixes" (list (printf "svc.%s" .Values.clusterDomain)))
    "connect" (dict "deny_loopback" true)
-}}
{{- if .Values.policy -}}{{- $_ := set $ours "authorise" .Values.policy -}}{{- end -}}
{{- if eq .Values.identity.source "linkerd" -}}
{{- $_ := set $ours "identity" (dict "source" "linkerd" "name" (include "isthmus.identity" .) "linkerd" (dict
    "address" (printf "linkerd-identity-headless.%s.svc.%s:8080" $linkerd .Values.clusterDomain)
    "server" (printf "linkerd-identity.%s.%s" $linkerd $mesh))) -}}
{{- end -}}
{{- $source := .Values.discovery.source -}}
{{- $sources := dict "dns" (dict "enabled" false) -}}
{{- if eq $source "kubernetes" -}}
{{- $kubernetes := dict "enabled" true "selector" .Values.discovery.selector "cluster_domain" .Values.clusterDomain -}}
{{- with .Values.discovery.namespaces -}}{{- $_ := set $kubernetes "namespaces" . -}}{{- end -}}
{{- $_ := set $sources "kubernetes" $kubernetes -}}
{{- else if eq $source "dns" -}}
{{- /* DNS cannot say which services are exported; this says that all are, so that the rules of the policy alone decide. */ -}}
{{- $_ := set $sources "dns" (dict "enabled" true "exported" true) -}}
{{- end -}}
{{- if include "isthmus.linkerd" . -}}
{{- $plane := dict
    "enabled" (eq $source "linkerd")
    "destination" (printf "linkerd-dst-headless.%s.svc.%s:8086" $linkerd .Values.clusterDomain)
    "destination_identity" (printf "linkerd-destination.%s.%s" $linkerd $mesh)
    "policy" (printf "linkerd-policy.%s.svc.%s:8090" $linkerd .Values.clusterDomain)
    "policy_identity" (printf "linkerd-destination.%s.%s" $linkerd $mesh)
-}}
{{- /* Its API cannot say what is exported either. */ -}}
{{- if eq $source "linkerd" -}}{{- $_ := set $plane "exported" true -}}{{- end -}}
{{- $_ := set $sources "linkerd" $plane -}}
{{- end -}}
{{- $_ := set $ours "sources" $sources -}}
{{- toYaml (mergeOverwrite (deepCopy $ours) (deepCopy .Values.config)) -}}
{{- end -}}

{{/* What the schema cannot say. Included by the Deployment. */}}
{{- define "isthmus.validate" -}}
{{- $identity := .Values.identity -}}
{{- if and (eq $identity.source "secret") (not $identity.secret.name) -}}
{{- fail "identity.secret.name is missing: the Secret with the gateway's certificate and key (docs/install.md says how to make it), or identity.source: certManager" -}}
{{- end -}}
{{- if and (eq $identity.source "certManager") (not $identity.certManager.issuerRef.name) -}}
{{- fail "identity.certManager.issuerRef.name is missing: an issuer whose certificates lead to the trust anchors of both clusters" -}}
{{- end -}}
{{- if and (eq $identity.trustBundle.source "inline") (not (contains "BEGIN CERTIFICATE" $identity.trustBundle.pem)) -}}
{{- fail "identity.trustBundle.pem holds no certificate: give it with --set-file identity.trustBundle.pem=anchors.crt" -}}
{{- end -}}
{{- if and (not $identity.trustBundle.name) (or (eq $identity.trustBundle.source "configMap") (and (eq $identity.trustBundle.source "secret") (ne $identity.source "secret"))) -}}
{{- fail "identity.trustBundle.name is missing: where the trust anchors of all clusters are. What cert-manager writes as ca.crt beside a certificate is its issuer's, not the anchors that other clusters use" -}}
{{- end -}}
{{- if and $identity.crl.configMap (not $identity.crl.keys) -}}
{{- fail "identity.crl.keys is empty: which keys of identity.crl.configMap hold revocation lists" -}}
{{- end -}}
{{- range $path, $instead := dict
    "tls.chain_file" "identity.secret" "tls.key_file" "identity.secret" "tls.bundle_file" "identity.trustBundle" "tls.crl_files" "identity.crl"
    "accept.listen" "listenAddress and service.gateway.port" "accept.proxy_networks" "service.proxyProtocol.networks"
    "probe.listen" "listenAddress and service.probe.port" "probe.plaintext" "nothing: the kubelet asks in plaintext" "probe.path" "service.probe.path"
    "admin.listen" "metrics.enabled" "drain.announce" "drain.announce" "drain.deadline" "drain.deadline" -}}
{{- $words := splitList "." $path -}}
{{- $section := get $.Values.config (first $words) -}}
{{- if and (kindIs "map" $section) (hasKey $section (last $words)) -}}
{{- fail (printf "config.%s is the chart's to say; set %s instead" $path $instead) -}}
{{- end -}}
{{- end -}}
{{- range $key, $instead := dict "enabled" "discovery.source" "selector" "discovery.selector" "namespaces" "discovery.namespaces" "cluster_domain" "clusterDomain" -}}
{{- if hasKey (dig "sources" "kubernetes" dict $.Values.config) $key -}}
{{- fail (printf "config.sources.kubernetes.%s is the chart's to say; set %s instead" $key $instead) -}}
{{- end -}}
{{- end -}}
{{- if and (ne .Values.discovery.source "kubernetes") .Values.discovery.namespaces -}}
{{- fail "discovery.namespaces is for discovery.source kubernetes only" -}}
{{- end -}}
{{- if hasKey .Values.config "authorise" -}}
{{- fail "config.authorise is the chart's to say; set policy instead" -}}
{{- end -}}
{{- if lt (include "isthmus.seconds" .Values.drain.deadline | int64) (include "isthmus.seconds" .Values.drain.announce | int64) -}}
{{- fail "drain.deadline is shorter than drain.announce; it is counted from the signal and includes it" -}}
{{- end -}}
{{- $service := .Values.service -}}
{{- if and $service.loadBalancer.internal (not $service.loadBalancer.cloud) -}}
{{- fail "service.loadBalancer.internal needs service.loadBalancer.cloud; for other clouds write the annotation in service.annotations" -}}
{{- end -}}
{{- if and $service.healthCheckNodePort (not (and (eq $service.type "LoadBalancer") (eq $service.externalTrafficPolicy "Local"))) -}}
{{- fail "service.healthCheckNodePort is for type LoadBalancer with externalTrafficPolicy Local only" -}}
{{- end -}}
{{- if and (eq $service.type "ClusterIP") (or $service.gateway.nodePort $service.probe.nodePort $service.externalTrafficPolicy) -}}
{{- fail "service.type ClusterIP has no node ports and no externalTrafficPolicy" -}}
{{- end -}}
{{- if eq (include "isthmus.probePort" .) ($service.gateway.port | int | toString) -}}
{{- fail "service.gateway.port and the probe's port are the same" -}}
{{- end -}}
{{- if and (not .Values.metrics.enabled) (or .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled) -}}
{{- fail "a monitor can read nothing while metrics.enabled is false" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor and metrics.serviceMonitor would count everything twice: choose one" -}}
{{- end -}}
{{- if and .Values.metrics.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) -}}
{{- fail "networkPolicy.metricsFrom is empty: who may read metrics, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling by CPU needs resources.requests.cpu: the share is a share of it" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.autoscaling.targetConnections (not .Values.metrics.enabled) -}}
{{- fail "autoscaling.targetConnections needs metrics.enabled: an adapter reads the connections there" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}
