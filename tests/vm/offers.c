/* SPDX-License-Identifier: MIT */
/* Tell, in lines for tests/vm/run, what this kernel offers to this process. */
#include <inttypes.h>
#include <stdio.h>

#include <uffd/uffd.h>

int main(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	static const char *const ways[LIBUFFD_WAYS] = { "syscall", "device", "user-mode" };
	int ret = libuffd_probe(&caps);

	if (ret < 0) {
		printf("#@ broken libuffd_probe() says %d\n", ret);
		return 1;
	}
	for (uint64_t bit = 1; bit; bit <<= 1)
		if (caps.features & ~caps.denied & bit && libuffd_feature_name(bit))
			printf("#@ fact feature %s\n", libuffd_feature_name(bit));
	for (int way = 0; way < LIBUFFD_WAYS; way++)
		if (!caps.way[way].error)
			printf("#@ fact way %s\n", ways[way]);
	printf("#@ fact page-size %" PRIu32 "\n", caps.page_size);
	printf("#@ fact pointers %zu\n", 8 * sizeof(void *));
	return 0;
}
