// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxAffinitySeconds is the API's limit of a session affinity's timeout.
const maxAffinitySeconds = 86400

func validateService(s *corev1.Service) field.ErrorList {
	errs := validateMeta(&s.ObjectMeta, true)
	spec := field.NewPath("spec")
	errs = append(errs, validateEnum(spec.Child("type"), s.Spec.Type, corev1.ServiceTypeClusterIP,
		corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)...)
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return errs
	}
	errs = append(errs, validateClusterIPs(spec, &s.Spec)...)
	errs = append(errs, validateServicePorts(spec.Child("ports"), s)...)
	errs = append(errs, validateServicePolicies(spec, &s.Spec)...)
	for i, ip := range s.Spec.ExternalIPs {
		errs = append(errs, validateIP(spec.Child("externalIPs").Index(i), ip)...)
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		if _, err := netip.ParsePrefix(r); err != nil {
			errs = append(errs, field.Invalid(spec.Child("loadBalancerSourceRanges").Index(i), r,
				"must be an address range like 10.0.0.0/24"))
		}
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			errs = append(errs, validateIP(field.NewPath("status", "loadBalancer", "ingress").Index(i).Child("ip"), in.IP)...)
		}
	}
	return errs
}

// validateClusterIPs wants the addresses that an API server would have given:
// there is nobody here to allocate them.
func validateClusterIPs(spec *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	if s.ClusterIP == "" {
		return field.ErrorList{field.Required(spec.Child("clusterIP"), "a manifest has to say the address, or None")}
	}
	if s.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	at := spec.Child("clusterIPs")
	var errs field.ErrorList
	if s.ClusterIPs[0] != s.ClusterIP {
		errs = append(errs, field.Invalid(at.Index(0), s.ClusterIPs[0], "must be clusterIP"))
	}
	var families []bool
	for i, ip := range s.ClusterIPs {
		addr, err := netip.ParseAddr(ip)
		switch {
		case err != nil && len(s.ClusterIPs) == 1:
			errs = append(errs, field.Invalid(spec.Child("clusterIP"), ip, "must be an IPv4 or IPv6 address, or None"))
		case err != nil:
			errs = append(errs, field.Invalid(at.Index(i), ip, "must be an IPv4 or IPv6 address"))
		case slices.Contains(families, addr.Is4()):
			errs = append(errs, field.Invalid(at.Index(i), ip, "is the second address of its family"))
		default:
			families = append(families, addr.Is4())
		}
	}
	return errs
}

func validateServicePorts(at *field.Path, s *corev1.Service) field.ErrorList {
	if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone {
		return field.ErrorList{field.Required(at, "")}
	}
	var errs field.ErrorList
	names, ports, nodePorts := map[string]bool{}, map[string]bool{}, map[string]bool{}
	unique := func(seen map[string]bool, at *field.Path, key string, value any) {
		if seen[key] {
			errs = append(errs, field.Duplicate(at, value))
		}
		seen[key] = true
	}
	for i, p := range s.Spec.Ports {
		at := at.Index(i)
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			errs = append(errs, field.Required(at.Child("name"), "a service with several ports names each"))
		} else {
			unique(names, at.Child("name"), p.Name, p.Name)
		}
		errs = append(errs, validatePort(at.Child("port"), p.Port)...)
		errs = append(errs, validateProtocol(at.Child("protocol"), p.Protocol)...)
		errs = append(errs, validateTargetPort(at.Child("targetPort"), p.TargetPort)...)
		unique(ports, at.Child("port"), fmt.Sprint(p.Port, p.Protocol), p.Port)
		if p.NodePort == 0 {
			continue
		}
		errs = append(errs, validatePort(at.Child("nodePort"), p.NodePort)...)
		unique(nodePorts, at.Child("nodePort"), fmt.Sprint(p.NodePort, p.Protocol), p.NodePort)
		if s.Spec.Type == corev1.ServiceTypeClusterIP {
			errs = append(errs, field.Forbidden(at.Child("nodePort"), "may not be used when type is ClusterIP"))
		}
	}
	return errs
}

func validateTargetPort(at *field.Path, p intstr.IntOrString) field.ErrorList {
	if p.Type == intstr.Int {
		return validatePort(at, p.IntVal)
	}
	var errs field.ErrorList
	for _, msg := range validation.IsValidPortName(p.StrVal) {
		errs = append(errs, field.Invalid(at, p.StrVal, msg))
	}
	return errs
}

func validateServicePolicies(spec *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	errs := validateEnum(spec.Child("sessionAffinity"), s.SessionAffinity,
		corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP)
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > maxAffinitySeconds {
			errs = append(errs, field.Invalid(spec.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), t,
				fmt.Sprintf("must be above 0 and at most %d", maxAffinitySeconds)))
		}
	}
	errs = append(errs, validateEnum(spec.Child("internalTrafficPolicy"), *s.InternalTrafficPolicy,
		corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	if s.ExternalTrafficPolicy != "" {
		errs = append(errs, validateEnum(spec.Child("externalTrafficPolicy"), s.ExternalTrafficPolicy,
			corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	}
	if s.HealthCheckNodePort != 0 {
		errs = append(errs, validatePort(spec.Child("healthCheckNodePort"), s.HealthCheckNodePort)...)
	}
	return errs
}
