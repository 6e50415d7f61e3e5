// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Label keys, in the order of the values. The six that all metrics have are
// cAdvisor's, so that dashboards made for it go on working.
const (
	labelsDisk    = "device"
	labelsNetwork = "interface"
	labelsUlimit  = "ulimit"
	labelsPage    = "pagesize"
)

// metricKind says what a metric means and which labels it has.
type metricKind struct {
	name, help string
	labels     []string
}

// metricKinds are the metrics of cAdvisor that the kubelet's /metrics/cadvisor
// has had for years, and two that containerd added (the file memory split).
func metricKinds() []metricKind {
	return slices.Concat(cpuKinds(), memoryKinds(), diskKinds(), networkKinds(), processKinds(), specKinds())
}

func cpuKinds() []metricKind {
	return []metricKind{
		{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", nil},
		{"container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", nil},
		{"container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", nil},
		{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", nil},
		{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", nil},
		{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", nil},
		{"container_pressure_cpu_waiting_seconds_total", "Total time duration tasks have waited due to cpu congestion.", nil},
		{"container_pressure_cpu_stalled_seconds_total", "Total time duration no task could make progress due to cpu congestion.", nil},
		{"container_pressure_memory_waiting_seconds_total", "Total time duration tasks have waited due to memory congestion.", nil},
		{"container_pressure_memory_stalled_seconds_total", "Total time duration no task could make progress due to memory congestion.", nil},
		{"container_pressure_io_waiting_seconds_total", "Total time duration tasks have waited due to io congestion.", nil},
		{"container_pressure_io_stalled_seconds_total", "Total time duration no task could make progress due to io congestion.", nil},
	}
}

func memoryKinds() []metricKind {
	return []metricKind{
		{"container_memory_cache", "Bytes of page cache memory.", nil},
		{"container_memory_rss", "Bytes of anonymous and swap cache memory.", nil},
		{"container_memory_kernel_usage", "Bytes of kernel memory.", nil},
		{"container_memory_mapped_file", "Bytes of memory mapped files.", nil},
		{"container_memory_swap", "Bytes of swap in use.", nil},
		{"container_memory_failcnt", "Number of times that memory usage hit its limit.", nil},
		{"container_memory_usage_bytes", "Bytes of memory in use, whenever it was accessed.", nil},
		{"container_memory_max_usage_bytes", "Most bytes of memory ever in use.", nil},
		{"container_memory_working_set_bytes", "Bytes of memory in use without inactive file memory.", nil},
		{"container_memory_total_active_file_bytes", "Bytes of active file memory.", nil},
		{"container_memory_total_inactive_file_bytes", "Bytes of inactive file memory.", nil},
		{"container_memory_failures_total", "Cumulative count of page faults.", []string{"failure_type", "scope"}},
		{"container_oom_events_total", "Count of kills for lack of memory.", nil},
		{"container_hugetlb_usage_bytes", "Bytes of huge pages in use.", []string{labelsPage}},
		{"container_hugetlb_max_usage_bytes", "Most bytes of huge pages ever in use.", []string{labelsPage}},
	}
}

func diskKinds() []metricKind {
	d := []string{labelsDisk}
	return []metricKind{
		{"container_fs_inodes_free", "Number of available inodes of the file system.", d},
		{"container_fs_inodes_total", "Number of inodes of the file system.", d},
		{"container_fs_limit_bytes", "Bytes that the container can use on the file system.", d},
		{"container_fs_usage_bytes", "Bytes that the container uses on the file system.", d},
		{"container_fs_reads_bytes_total", "Cumulative count of bytes read.", d},
		{"container_fs_reads_total", "Cumulative count of reads completed.", d},
		{"container_fs_writes_bytes_total", "Cumulative count of bytes written.", d},
		{"container_fs_writes_total", "Cumulative count of writes completed.", d},
		{"container_blkio_device_usage_total", "Cumulative bytes by device and operation.", []string{labelsDisk, "major", "minor", "operation"}},
	}
}

func networkKinds() []metricKind {
	i := []string{labelsNetwork}
	return []metricKind{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received.", i},
		{"container_network_receive_packets_total", "Cumulative count of packets received.", i},
		{"container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", i},
		{"container_network_receive_errors_total", "Cumulative count of errors while receiving.", i},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", i},
		{"container_network_transmit_packets_total", "Cumulative count of packets transmitted.", i},
		{"container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.", i},
		{"container_network_transmit_errors_total", "Cumulative count of errors while transmitting.", i},
	}
}

func processKinds() []metricKind {
	return []metricKind{
		{"container_processes", "Number of processes running inside the container.", nil},
		{"container_file_descriptors", "Number of open file descriptors.", nil},
		{"container_sockets", "Number of open sockets.", nil},
		{"container_threads_max", "Maximum number of threads allowed, infinity if zero.", nil},
		{"container_threads", "Number of threads running inside the container.", nil},
		{"container_ulimits_soft", "Soft limits of the container's first process.", []string{labelsUlimit}},
		{"container_last_seen", "Last time the container was seen.", nil},
		{"container_start_time_seconds", "Start time since the unix epoch in seconds.", nil},
	}
}

func specKinds() []metricKind {
	return []metricKind{
		{"container_spec_cpu_period", "CPU period of the container.", nil},
		{"container_spec_cpu_quota", "CPU quota of the container.", nil},
		{"container_spec_cpu_shares", "CPU share of the container.", nil},
		{"container_spec_memory_limit_bytes", "Memory limit of the container, zero without one.", nil},
		{"container_spec_memory_reservation_limit_bytes", "Memory reservation of the container.", nil},
		{"container_spec_memory_swap_limit_bytes", "Memory swap limit of the container, zero without one.", nil},
	}
}

// baseLabels are the keys that every metric has, in the order of its values.
func baseLabels() []string {
	return []string{"container", "id", "image", "name", "namespace", "pod"}
}

// Descriptors describes all metrics; it is always the same.
func Descriptors() []*runtimeapi.MetricDescriptor {
	kinds := metricKinds()
	out := make([]*runtimeapi.MetricDescriptor, len(kinds))
	for i, k := range kinds {
		out[i] = &runtimeapi.MetricDescriptor{
			Name: k.name, Help: k.help, LabelKeys: append(baseLabels(), k.labels...),
		}
	}
	return out
}
