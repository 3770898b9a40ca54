{{/* The installation's name: of its objects, at most 27 characters, as KubeRay adds to it. */}}
{{- define "serve-app.name" -}}
{{- $name := .Values.name | default .Release.Name -}}
{{- if or (gt (len $name) 27) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) -}}
{{- fail (printf "name: '%s' (of the values, else of the release) is to have at most 27 characters of a-z, 0-9 and -, and to begin with a letter" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "serve-app.namespace" -}}
{{- .Values.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* Of what is in no namespace: no two installations of a cluster have it. */}}
{{- define "serve-app.cluster-name" -}}
{{- $name := include "serve-app.name" . -}}
{{- $namespace := include "serve-app.namespace" . -}}
{{- if ne $name $namespace -}}{{ $namespace }}.{{ end -}}{{ $name }}
{{- end -}}

{{/* (root, way): the way's preset, or nothing. */}}
{{- define "serve-app.preset" -}}
{{- $root := index . 0 -}}
{{- $runs := $root.Files.Get "run.json" | fromJson -}}
{{- if hasKey $root.Values "run" -}}{{- $runs = $root.Values.run -}}{{- end -}}
{{- get $runs (index . 1) -}}
{{- end -}}

{{/* (root, cpu or cuda): the serving image. Without tag and digest it is the chart's version of it. */}}
{{- define "serve-app.image" -}}
{{- $root := index . 0 -}}
{{- $image := get $root.Values.images (index . 1) -}}
{{- if $root.Values.images.registry -}}{{- $image = printf "%s/%s" $root.Values.images.registry $image -}}{{- end -}}
{{- $image -}}
{{- if not (or (contains "@" $image) (contains ":" (splitList "/" $image | last))) -}}
:{{ $root.Chart.AppVersion }}-{{ index . 1 }}
{{- end -}}
{{- end -}}

{{/* (root, end of the name, template): a Job's name. It has a hash of what cannot be changed once the Job is there. */}}
{{- define "serve-app.job-name" -}}
{{- $root := index . 0 -}}
{{- $hash := include (index . 2) $root | fromYaml | toJson | sha256sum | trunc 8 -}}
{{- $stem := printf "%s%s" (include "serve-app.name" $root) (index . 1) | trunc 54 -}}
{{- regexReplaceAll "-+$" $stem "" }}-{{ $hash }}
{{- end -}}
